"""Strategies: what is asked for, in which order, and when they end."""

import shutil
from pathlib import Path

import pytest

from launch.searching.settings import Range, Search, changed, start_of, text_of
from launch.searching.strategies import Grid, OneAtATime, Optuna, strategy_of
from mergers import Dare, Merger, SheetbendError, Ties

MERGER = Merger("knots", Ties(density=0.2), [Dare(0.1)], coefficients=0.6)


def run(strategy, score, most=1):
    """Candidates in their order, each told its score."""
    seen = []
    while asked := strategy.ask(most):
        assert len(asked) <= most
        for values in asked:
            seen.append(values)
            strategy.tell(values, score(values))
    return seen


def test_a_grid_is_all_combinations_whatever_is_asked_for_at_once():
    space = {"a": [1, 2], "b": Range(0.1, 0.3, 0.1)}
    every = [{"a": a, "b": b} for a in (1, 2) for b in (0.1, 0.2, 0.3)]
    assert run(Grid(space), lambda values: 0.0, most=4) == run(Grid(space), lambda values: 1.0) == every


def test_a_grid_of_more_than_memory_holds_is_begun_at_once():
    grid = Grid({name: Range(1, 1000, 1) for name in "abcd"})
    assert grid.ask(2) == [{"a": 1, "b": 1, "c": 1, "d": 1}, {"a": 1, "b": 1, "c": 1, "d": 2}]
    assert grid.ask(1) == [{"a": 1, "b": 1, "c": 1, "d": 3}]


def test_one_at_a_time_stops_at_the_first_drop_and_keeps_the_best():
    scores = {(1, 10): 0.5, (2, 10): 0.6, (3, 10): 0.55, (4, 10): 0.9, (2, 20): 0.7, (2, 30): 0.7, (2, 40): 0.6}
    space = {"a": [1, 2, 3, 4], "b": [10, 20, 30, 40, 50]}
    seen = run(OneAtATime(space, {"a": 1, "b": 10}), lambda values: scores[values["a"], values["b"]])
    # 4 is past the drop at 3, 50 past that at 40; an equal score is no drop.
    assert [(v["a"], v["b"]) for v in seen] == [(1, 10), (2, 10), (3, 10), (2, 20), (2, 30), (2, 40)]


def test_one_at_a_time_waits_for_a_score():
    strategy = OneAtATime({"a": [1, 2]}, {"a": 0})
    assert strategy.ask(5) == [{"a": 0}] and strategy.ask(5) == []
    strategy.tell({"a": 0}, 0.1)
    assert strategy.ask(5) == [{"a": 1}]


SPACE = {"a": Range(0.0, 1.0), "b": ["x", "y"], "c": [[1, 2], None]}
START = {"a": 0.5, "b": "x", "c": None}


def distance(values):
    return -abs(values["a"] - 0.3) - (values["b"] == "x")


@pytest.fixture
def study(tmp_path):
    """Opens one study in a file, for a worker."""
    pytest.importorskip("optuna")

    def opened(worker, trials=12, seed=0):
        return Optuna(SPACE, START, "s", trials, str(tmp_path / "s.journal"), seed, worker)

    return opened


def test_optuna_asks_again_for_what_was_cut_off_and_finds_what_is_good(study):
    first = study("one")
    begun = first.ask(1)
    assert begun == [START]
    first.tell(START, distance(START))
    cut_off = first.ask(3)  # never told: the process ends here
    again = study("one")
    assert again.ask(3) == cut_off
    for values in cut_off:
        again.tell(values, distance(values))
    seen = run(again, distance, most=4)
    assert len(seen) == 8 and study("two").ask(1) == []
    assert max(map(distance, seen)) > distance(START) + 0.5
    assert len(run(study("two", trials=14), distance)) == 2


def test_a_killed_search_leaves_no_lock_and_no_trial_without_values(tmp_path, monkeypatch):
    """Killed at any moment, it proposes what it would have proposed: between trials, or in the middle of one."""
    pytest.importorskip("optuna")
    from optuna.trial import Trial

    def opened():
        search = Search(over={"coefficients": [0.1, 0.2, 0.3], "density": [0.2, 0.5]}, strategy="optuna", trials=6)
        merger = Merger(method=Ties(density=0.2))
        space = search.spaces({"ties": merger})["ties"]
        return strategy_of(search, space, merger, "ties", Path("run"), seed=0)

    def score(values):
        return values["coefficients"]

    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    whole = run(opened(), score, most=2)
    suggest = Trial._suggest
    for number in (1, 4, 7):  # calls, two a trial
        shutil.rmtree("run")
        Path("run").mkdir()
        calls = iter(range(number))

        def killed(trial, *args, calls=calls):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return suggest(trial, *args)

        seen, first = [], opened()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Trial, "_suggest", killed)
            while asked := first.ask(2):
                for values in asked:
                    seen.append(values)
                    first.tell(values, score(values))
        Path("run/optuna.journal.lock").symlink_to("run/optuna.journal")
        assert seen + run(opened(), score, most=2) == whole


def test_two_workers_share_a_study_and_hear_of_each_other(study):
    one, two = study("one"), study("two", seed=1)
    seen = {"one": [], "two": []}
    while asked := [(name, own, values) for name, own in (("one", one), ("two", two)) for values in own.ask(2)]:
        for name, own, values in asked:
            seen[name].append(values)
            own.tell(values, distance(values), {"by": name})
    assert len(seen["one"]) + len(seen["two"]) == 12 and min(map(len, seen.values())) > 2
    every = [tuple(map(str, values.values())) for values in (*seen["one"], *seen["two"])]
    assert len(set(every)) == len(every)
    assert one.heard() == [(values, {"by": "two"}) for values in seen["two"]] and one.heard() == []
    assert len(study("three").heard()) == 12  # all that a new worker would need
    two = study("two", trials=13)
    assert len(two.ask(5)) == 1 and one.elsewhere() == 1 and two.elsewhere() == 0


def test_optuna_asks_for_few_at_once_after_its_first_proposals(study):
    strategy = study("one", trials=40)
    sizes = []
    while asked := strategy.ask(100):
        sizes.append(len(asked))
        assert strategy.ask(100) == []
        for values in asked:
            strategy.tell(values, distance(values))
    assert sizes[0] == 10 and set(sizes[1:-1]) == {4} and sum(sizes) == 40


def test_whole_numbers_stay_whole_and_ranges_are_kept_to(tmp_path):
    pytest.importorskip("optuna")
    space = {"n": Range(2, 10, 2), "k": Range(1, 100, log=True), "x": Range(0.1, 0.9, 0.2), "free": Range(1, 3)}
    start = {"n": 3, "k": 1, "x": 0.1, "free": 1}
    seen = run(Optuna(space, start, "s", 15, str(tmp_path / "s.journal"), 0, "w"), lambda values: values["x"])
    assert all(values["n"] in (2, 4, 6, 8, 10) and isinstance(values["k"], int) for values in seen)
    assert {round(values["x"], 6) for values in seen} <= {0.1, 0.3, 0.5, 0.7, 0.9}
    assert all(1 <= values["free"] <= 3 for values in seen) and any(values["free"] % 1 for values in seen)


@pytest.mark.parametrize(
    "storage", ["mysql+nothing://user:secret@host/base", "sqlite:////no/such/folder/s.db", "{tmp}"]
)
def test_a_storage_that_cannot_be_opened_is_one_line_without_its_password(tmp_path, storage):
    pytest.importorskip("optuna")
    with pytest.raises(SheetbendError) as error:
        Optuna(SPACE, START, "s", 3, storage.format(tmp=tmp_path), 0, "w")
    said = str(error.value)
    assert said.startswith("search.storage ") and "cannot be opened" in said and "\n" not in said
    assert "secret" not in said


def test_spaces_name_settings_in_full_and_pass_over_what_a_merge_lacks():
    mergers = {"knots-dare-ties": MERGER, "mean": Merger()}
    over = {"coefficients": [0.5, 1.0], "density": [0.1], "Dare.drop_rate": {"low": 0.1, "high": 0.5, "step": 0.2}}
    found = Search(over).spaces(mergers)
    assert found["mean"] == {"coefficients": [0.5, 1.0]}
    assert list(found["knots-dare-ties"]) == ["coefficients", "method.density", "transforms.0.drop_rate"]
    assert Search(over, of={"mean": {}}).spaces(mergers)["mean"] == {}
    best = changed(MERGER, {"method.density": 0.5, "method": "ties", "transforms.0.drop_rate": 0.3, "space": "core"})
    assert str(best) == "Dare(drop_rate=0.3), then Ties(density=0.5), in Core space, coefficient 0.6"


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ({}, "leave nothing to search"),
        ({"over": None, "of": None}, "leave nothing to search"),
        ({"over": {"densitty": [1]}}, "search.over names 'densitty', which no merge has (did you mean 'density'?)"),
        ({"over": {"drop_rat": [1]}}, "'drop_rat', which no merge has (did you mean 'drop_rate'?)"),  # of another
        ({"over": {3: [1]}}, "search.over names 3, which no merge has; known: space, method"),
        ({"of": {"ties": {"densitty": [1]}}}, "search.of ties: Ties(density=0.2), in Full space: there is no setting"),
        ({"of": {"dare": {"seed": [1], 3: [1]}}}, "search.of dare: "),
        ({"over": {"density": None}}, "search over density: the list is empty"),
        ({"over": {"density": []}}, "search over density: the list is empty"),
        ({"over": {"density": 0.3}}, "search over density: 0.3 is no list of values; give [0.3], or a range"),
        ({"over": {"density": [0.3, 0.3]}}, "0.3 stands twice"),
        ({"over": {"density": [0.3, 2]}}, "search over method.density of ties: Ties density is 2"),
        ({"over": {"density": ["x"]}}, "search over method.density of ties:"),
        ({"over": {"density": {"low": 0.1}}}, "a range has low, high, and step or log, not {'low': 0.1}"),
        ({"over": {"density": {"low": 0.4, "high": 0.1}}}, "search over density: range from 0.4 to 0.1 is empty"),
        ({"over": {"density": {"low": 0.1, "high": 0.4, "step": 0}}}, "search over density: range step is 0; give"),
        ({"over": {"density": {"low": 0.1, "high": 0.4, "step": 5}}}, "step 5 leads from 0.1 past 0.4; give a smaller"),
        ({"over": {"density": {"low": 0.1, "high": 1, "step": 1e-9}}}, "has 900,000,001 values of step 1e-09; give a"),
        ({"over": {"density": {"low": 0.1, "high": 1, "log": "no"}}}, "range log is 'no'; give true or false"),
        ({"over": {"density": {"low": 0.1, "high": 0.4}}}, "one_at_a_time needs a step in its range"),
        ({"of": {"tise": {"density": [0.1]}}}, "search.of names 'tise'; known merges: ties"),
        ({"over": {"space": ["fulll"]}}, "unknown space 'fulll'"),
    ],
)
def test_what_cannot_be_searched_is_one_line(search, expected):
    with pytest.raises(SheetbendError) as error:
        Search(**search).spaces({"ties": Merger(method=Ties()), "dare": Merger(transforms=[Dare(0.1)])})
    assert expected in str(error.value) and "\n" not in str(error.value)


OUTPUTS = {"class_path": "mergers.KnOTS", "init_args": {"concatenate": "outputs"}}


def test_whole_steps_are_searched_by_name_or_by_class():
    search = Search({"space": ["full", "knots", OUTPUTS], "method": ["ties", "tall_masks"]}, strategy="grid")
    space = search.spaces({"a": MERGER})["a"]
    assert start_of(MERGER, space)["space"] == "knots"
    made = [str(changed(MERGER, values)) for values in run(Grid(space), lambda values: 0.0)]
    assert len(set(made)) == 6
    assert made[-1] == (
        "Dare(drop_rate=0.1), then TallMasks(threshold=0.4), in KnOTS(concatenate=outputs) space, coefficient 0.6"
    )
    assert text_of(OUTPUTS) == "KnOTS(concatenate=outputs)"
    assert start_of(MERGER, {"method": ["mean"]}) == {"method": {"class_path": "mergers.Ties"}}  # density 0.2


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        (
            {"space": [{"class_path": "mergers.Knots"}]},
            "there is no class mergers.Knots; give one such",
        ),
        ({"space": [{"class_path": "os.system", "init_args": {"command": "exit 9"}}]}, "there is no class os.system"),
        ({"space": [{"class_path": "mergers.KnOTS", "init_args": {"cut": 1}}]}, "mergers.KnOTS: "),
        ({"space": [{"class_path": "mergers.KnOTS", "init_args": {"concatenate": "x"}}]}, "concatenate is 'x'"),
        ({"space": [{"class_path": "mergers.Ties"}]}, "space is Ties("),
        ({"transforms": [[]], "seed": [1]}, "there is no setting 'transforms.0.seed'"),
        ({"method": ["ties", "mean"], "density": [0.1]}, "there is no setting 'method.density'"),
        ({"transforms": ["dare"]}, "transforms is 'dare'; give a list"),
        ({"scale_by_singular_values": [True, 0.5]}, "KnOTS scale_by_singular_values is 0.5; give true or false"),
        ({"drop_rate": [True]}, "Dare drop_rate is True; give a number"),
        ({"seed": [0.5]}, "Dare seed is 0.5; give a whole number"),
        ({"density": ["much"]}, "Ties density is 'much'; give a number"),
        ({"density": [0.1], "method.density": [0.2]}, "search over method.density of a stands twice; give it once"),
        ({"coefficients": [float("nan")]}, "coefficients holds nan; give finite numbers"),
    ],
)
def test_a_value_that_a_setting_cannot_have_is_one_line(over, expected):
    with pytest.raises(SheetbendError) as error:
        Search(over).spaces({"a": MERGER})
    assert expected in str(error.value) and "\n" not in str(error.value)
