import dataclasses
import json

import pytest
from rich.console import Console

from callbacks.curves import Curves, Point
from callbacks.report import report
from callbacks.results import Results
from callbacks.results_table import cells, joint_columns, own_columns, results_table, results_view
from lightning_modules.scores import Score
from mergers.errors import SheetbendError

ACCURACY = {
    "pretrained": (0.6, 0.2),
    "finetuned": (0.8, 0.5),
    "ties": (0.6, 0.48),
    "knots-ties": (0.72, 0.4),
}
COUNTS = {"digits": 100, "fashion-mnist": 300}


def make(joint=True, skip=()):
    scores = []
    for variant, values in ACCURACY.items():
        for (task, count), value in zip(COUNTS.items(), values, strict=True):
            if (variant, task) not in skip:
                scores.append(Score(variant, task, "accuracy", value, count))
            if joint:
                scores += [Score(variant, task, f"joint_hits@{k}", value * (0.5 + k / 10), count) for k in (1, 3, 5)]
        if joint:
            pooled = (values[0] * 100 + values[1] * 300) / 400
            scores += [Score(variant, "all", f"joint_hits@{k}", pooled * (0.5 + k / 10), 400) for k in (1, 3, 5)]
    return Results(tuple(scores), {"seed": 3, "run": "tiny"}, "test", {"ties": "TIES, density 0.2"})


def shown(renderable, width=100):
    console = Console(width=width, force_terminal=False, no_color=True)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_derived_numbers():
    results = make()
    assert results.variants == ("pretrained", "finetuned", "ties", "knots-ties")
    assert results.merged == ("ties", "knots-ties")
    assert results.tasks == ("digits", "fashion-mnist")
    assert (results.hits, results.examples, results.count("fashion-mnist")) == ((1, 3, 5), 400, 300)
    assert results.value("ties", "digits") == 0.6
    assert results.normalised("ties", "digits") == pytest.approx(0.75)
    assert results.mean_value("ties") == pytest.approx(0.54)
    # The mean of the ratios 0.75 and 0.96; the ratio of the means would be 0.8308.
    assert results.mean_normalised("ties") == pytest.approx(0.855)
    assert results.mean_normalised("finetuned") == 1.0
    # Over all examples (60 + 144) / 400, over tasks (0.6 + 0.48) / 2, each times 0.6.
    assert results.joint("ties", 1) == pytest.approx(0.6 * 204 / 400)
    assert results.joint("ties", 1, "mean") == pytest.approx(0.6 * 0.54)


def test_each_task_is_stood_for_by_its_own_metric():
    scores = [
        Score(variant, task, metric, value, 10)
        for variant, values in {"finetuned": (0.5, 0.9, 0.8), "ties": (-0.25, 0.6, 0.4)}.items()
        for task, metric, value in zip(
            ("cola", "cola", "sst2"), ("matthews", "accuracy", "accuracy"), values, strict=True
        )
    ]
    results = Results(tuple(scores))
    assert (results.metric("cola"), results.metric("sst2"), results.measure) == ("matthews", "accuracy", "score")
    assert results.value("ties", "cola") == -0.25
    assert results.mean_normalised("ties") == pytest.approx((-0.5 + 0.5) / 2)
    text = " ".join(shown(results_table(results)).split())
    assert "score in %" in text and "-25.0" in text
    assert "cola: Matthews correlation; the others: accuracy." in text
    rows = [line.split(",") for line in results.to_csv().splitlines()]
    assert ["ties", "cola", "matthews", "-0.25", "10", "-0.5"] in rows
    assert ["ties", "cola", "accuracy", "0.6", "10", ""] in rows
    assert Results.from_json(results.to_json()).mean_value("ties") == results.mean_value("ties")
    curves = Curves().record(5, 0, scores)
    assert curves.measure == "score" and curves.line("ties", "cola") == {5: -0.25}


@pytest.mark.parametrize("finetuned", [0.0, -0.1])
def test_nothing_is_normalised_by_a_score_that_is_not_above_0(finetuned):
    scores = [
        Score(variant, task, metric, value, 10)
        for variant, values in {"finetuned": (finetuned, 0.8), "ties": (-0.5, 0.4)}.items()
        for task, metric, value in zip(("stsb", "sst2"), ("spearman", "accuracy"), values, strict=True)
    ]
    results = Results(tuple(scores))
    assert results.normalised("ties", "stsb") is None and results.normalised("ties", "sst2") == 0.5
    assert results.mean_normalised("ties") is None
    assert "Finetuned is not above 0 on stsb" in report(results)


def test_labels_of_equal_names_as_one_label_have_columns_of_their_own():
    extra = [Score("ties", task, "joint_by_name_hits@1", 0.7, 100) for task in ("digits", "all")]
    results = Results((*make().scores, *extra))
    assert results.spaces == ("joint", "joint_by_name")
    assert results.joint("ties", 1, space="joint_by_name") == 0.7
    assert results.joint("ties", 1) == make().joint("ties", 1)
    for width in (60, 200):
        assert "labels of equal names as one" in " ".join(shown(results_view(results, width)).split())
        assert "labels of equal names" not in " ".join(shown(results_view(make(), width)).split())


def test_nothing_is_derived_from_what_is_not_there():
    without = Results(tuple(score for score in make().scores if score.variant != "finetuned"))
    assert without.normalised("ties", "digits") is None
    assert [column.heading for column in own_columns(without)] == ["digits", "fashion-mnist", "mean"]
    partly = make(skip={("ties", "digits")})
    assert partly.value("ties", "digits") is None
    assert partly.mean_value("ties") is None
    assert "-" in shown(results_table(partly)).splitlines()[7]
    assert make(joint=False).hits == ()
    assert joint_columns(make(joint=False)) == []
    nothing = Results((Score("finetuned", "a", "accuracy", 0.0, 9), Score("ties", "a", "accuracy", 0.1, 9)))
    assert nothing.normalised("ties", "a") is None


def test_a_number_measured_twice_is_refused():
    score = Score("ties", "digits", "accuracy", 0.5, 10)
    with pytest.raises(ValueError, match="share one"):
        Results((score, dataclasses.replace(score, value=0.6)))


def test_table_numbers():
    lines = shown(results_table(make())).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.split() and line[0].isalpha()}
    assert rows["pretrained"] == ["60.0", "20.0", "40.0", "57.5", "18.0", "24.0", "30.0"]
    assert rows["finetuned*"] == ["80.0", "50.0", "65.0", "100.0", "34.5", "46.0", "57.5"]
    assert rows["ties"] == ["60.0", "48.0", "54.0", "85.5", "30.6", "40.8", "51.0"]
    assert rows["knots-ties"] == ["72.0", "40.0", "56.0", "85.0", "28.8", "38.4", "48.0"]
    assert lines[0].strip() == "Test accuracy in %, 400 examples of 2 tasks"
    assert "oracle" in shown(results_table(make()))
    assert "Validation" in shown(results_table(dataclasses.replace(make(), split="val")))


def test_titles_and_captions_are_as_wide_as_the_screen():
    narrow = dataclasses.replace(make(), scores=tuple(score for score in make(False).scores if score.task == "digits"))
    lines = shown(results_table(narrow), 100).splitlines()
    assert lines[0].strip() == "Test accuracy in %, 100 examples of 1 task"
    assert lines[-1].strip() == "norm. mean: mean over tasks of accuracy / finetuned accuracy."
    assert max(len(line.rstrip()) for line in lines[1:-1]) < 40
    assert max(len(line) for line in shown(results_table(narrow), 30).splitlines()) <= 30


def test_the_best_merge_is_marked_and_only_among_merges():
    results = make()
    digits, fashion, mean, normalised = (cells(results, column) for column in own_columns(results))
    assert digits["knots-ties"] == ("72.0", True)
    assert [name for name, (_, best) in fashion.items() if best] == ["ties"]
    assert [name for name, (_, best) in mean.items() if best] == ["knots-ties"]
    assert [name for name, (_, best) in normalised.items() if best] == ["ties"]
    equal = Results(tuple(Score(name, "a", "accuracy", 0.70001 + i / 1e5, 9) for i, name in enumerate("xyz")))
    assert all(best for _, best in cells(equal, own_columns(equal)[0]).values())


@pytest.mark.parametrize("width", [100, 80, 60, 45])
def test_every_width_shows_every_variant_and_number(width):
    text = shown(results_view(make(), width), width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in text
    tables = sum(line.startswith("variant") for line in lines)
    assert tables == 1 if width >= 80 else tables >= 2
    for name in ("pretrained", "ties", "knots-ties"):
        assert sum(line.split()[:1] == [name] for line in lines) == tables
    for number in ("60.0", "48.0", "54.0", "85.5", "30.6", "40.8", "51.0"):
        assert number in text


def test_names_are_not_markup():
    results = Results((Score("[red]x", "[b]t", "accuracy", 0.5, 2),))
    assert "[red]x" in shown(results_table(results))
    assert "[b]t" in shown(results_table(results))


def test_json_round_trip():
    results = make()
    assert Results.from_json(results.to_json()) == results
    derived = json.loads(results.to_json())["derived"]["ties"]
    assert derived["mean_normalised"] == pytest.approx(0.855)
    assert derived["mean_joint_hits@3"] == pytest.approx(0.54 * 0.8)


def test_csv_round_trip():
    results = make()
    lines = results.to_csv().splitlines()
    assert lines[0] == "variant,task,metric,value,count,normalised"
    assert f"ties,digits,accuracy,0.6,100,{0.6 / 0.8}" in lines
    assert lines[-4].startswith("knots-ties,mean,accuracy,0.56")
    assert Results.from_csv(results.to_csv()).scores == results.scores


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 9}', '{"format": 1, "scores": [{"a": 1}]}'])
def test_json_that_holds_no_results(text):
    with pytest.raises(SheetbendError, match=r"old/results\.json .*run the test again") as caught:
        Results.from_json(text, "old/results.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("where", "value", "expected"),
    [
        (("scores", 0, "value"), float("nan"), "not a score"),
        (("scores", 0, "value"), float("inf"), "not a score"),
        (("scores", 0, "value"), 10**400, "not a score"),
        (("scores", 0, "value"), True, "not a score"),
        (("scores", 0, "count"), -5, "not a score"),
        (("scores", 0, "variant"), 3, "not a score"),
        (("split",), 3, "split is not what a test writes"),
        (("descriptions",), {"ties": 3}, "descriptions is"),
        (("meta", "splits"), "abc", "splits is"),
        (("meta", "splits"), {"digits": "abc"}, "splits.digits is"),
        (("meta", "splits"), {"digits": {"test": 3}}, "splits.digits is"),
        (("meta", "versions"), "abc", "versions is"),
        (("meta", "seconds"), {"test": "long"}, "seconds is"),
        (("meta", "machine"), {"memory_bytes": "many"}, "machine is"),
        (("meta", "peak_bytes"), {"resident": "many"}, "peak_bytes is"),
        (("meta", "command"), ["fit"], "command is"),
    ],
)
def test_json_with_other_types_than_a_test_writes_is_named(where, value, expected):
    content = json.loads(make().to_json())
    place = content
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    with pytest.raises(SheetbendError, match="holds no results") as caught:
        Results.from_json(json.dumps(content))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "variant,task,metric,value,count\nx,y,accuracy,high,3\n"])
def test_csv_that_holds_no_results(text):
    with pytest.raises(SheetbendError, match="holds no results"):
        Results.from_csv(text)


def test_curves():
    scores = [
        Score("finetuned", "a", "accuracy", 0.4, 10),
        Score("finetuned", "b", "accuracy", 0.8, 10),
        Score("finetuned", "all", "joint_hits@1", 0.1, 20),
    ]
    curves = Curves().record(10, 0, scores).record(20, 1, scores[:1])
    assert curves.points[-1] == Point(20, 1, "finetuned", "a", "accuracy", 0.4)
    assert (curves.tasks, curves.variants, curves.steps) == (("a", "b"), ("finetuned",), (10, 20))
    assert curves.line("finetuned", "a") == {10: 0.4, 20: 0.4}
    assert curves.line("finetuned", "mean") == {10: pytest.approx(0.6)}
    assert Curves.from_state(curves.state()) == curves
    assert Curves.from_csv(curves.to_csv()) == curves
    assert curves.to_csv().splitlines()[:2] == ["step,epoch,variant,task,metric,value", "10,0,finetuned,a,accuracy,0.4"]
    back = curves.record(10, 0, scores[1:])
    assert back.steps == (10,) and back.tasks == ("b",)
    with pytest.raises(SheetbendError, match=r"history\.csv holds no curves"):
        Curves.from_csv("step,epoch\n1,2\n")
