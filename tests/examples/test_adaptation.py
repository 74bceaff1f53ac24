"""The comparison of learned merges with static ones: what is run, what is made of it, and whole fine-tuning."""

import json
import math
import re
import warnings

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from rich.console import Console
from transformers import CLIPVisionModelWithProjection

from examples.adaptation import answers, compare, explain, search, tables
from examples.adaptation.finetune_whole import WholeImageClassifier, finetune, is_done
from examples.adaptation.finetune_whole import main as finetune_main
from examples.adaptation.plan import (
    CONFIG,
    ROWS,
    STARTS,
    Choice,
    Job,
    Plan,
    merger,
    read_chosen,
    start_of,
    starts,
    static_coefficients,
)
from launch.cli import quiet_libraries
from launch.lightning_cli import ConfigurationOnly
from lightning_modules import ImageClassifier, Score
from lightning_modules.scores import headline_scores
from mergers import Cart, Merger, SheetbendError
from mergers.adaptive import AdaRank
from tests.lightning_modules.adapting import lora_clip
from tests.stand_ins import StandIns

WORLDS = ("lora", "whole")
TASKS = ("hue", "shade")
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture
def chosen(tmp_path):
    """Settings such as --search would write: the best static coefficient is not where the learned merges start."""
    found = {
        world: {
            **{name: (Choice({"task_arithmetic": 0.3, "cart": 2.3, "tsv": 1.0}[row.start], 5e-3), 0.7)
               for name, row in ROWS.items()},
            "task-arithmetic": (Choice(0.5), 0.6), "cart": (Choice(2.3), 0.6), "tsv-m": (Choice(0.7), 0.6),
            **({"knots-ties": (Choice(1.2), 0.6)} if world == "lora" else {}),
        }
        for world in WORLDS
    }  # fmt: skip
    search.write_chosen({"lora": found["lora"]}, tmp_path / "chosen.json")
    search.write_chosen({"whole": found["whole"]}, tmp_path / "chosen.json")
    return read_chosen(WORLDS, tmp_path / "chosen.json")


def write_results(folder, values, seconds=None):
    """A results.json with the accuracy of each variant on the tasks, in their order."""
    scores = [
        Score(variant, task, "accuracy", value, 50)
        for variant, of_variant in values.items()
        for task, value in zip(TASKS, of_variant, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    meta = {"seconds": {"test": 1.0} | ({} if seconds is None else {"fit": seconds})}
    (folder / "results.json").write_text(tables.Results(tuple(scores), meta).to_json())


def made_up_runs(plan, chosen, seeds):
    """Runs in which each learned merge is 0.1 above its start on the first task, and a seed is worth 0.02."""
    for world in WORLDS:
        for seed in seeds:
            names = [f"{method}-{c:g}" for method, cs in static_coefficients(chosen[world]).items() for c in cs]
            static = dict.fromkeys(names, (0.5 + 0.02 * seed, 0.6))
            static |= {"pretrained": (0.3, 0.3), "finetuned": (0.9, 0.8)}
            write_results(plan.run_folder(world, seed), static)
            for row, _ in starts(world, chosen[world]):
                write_results(plan.adaptation_folder(world, seed, row.name), {row.name: (0.5 + 0.02 * seed, 0.6)})
            for number, (name, row) in enumerate(ROWS.items()):
                folder = plan.adaptation_folder(world, seed, name)
                write_results(folder, {"finetuned": (0.9, 0.8), name: (0.6 + 0.02 * seed, 0.6)}, 40.0 + number)
                if row.learn != "coefficients":
                    (folder / "kept_rank.csv").write_text("module,task,kept,directions\na,hue,1,4\na,shade,3,4\n")


def test_every_command_of_the_plan_is_one_that_the_command_line_reads(chosen):
    training, merges = Plan(compare.Path("runs"), steps=7).stages(WORLDS, (0, 3), chosen)
    assert len(training) == 4 and len(merges) == 4 * (1 + len(ROWS)) + 2 * 2  # two starts of whole models
    assert len({job.name for job in training + merges}) == len(training + merges)
    names = ("lora-0", "lora-3-static", "whole-3-adarank-cart+d", "whole-3-start-cart-2.3")
    learned = {}
    for job in (job for job in training + merges if job.name in names):
        assert compare.Path(job.words[0]).is_file()
        read = ConfigurationOnly(list(job.words[1:])).config["fit"]
        learned[job.name] = read.adaptation
        assert read.seed_everything == int(re.search(r"-(\d)", job.name)[1])
        assert (read.model.init_args.adapters is None) == job.name.startswith("lora")
    assert set(learned) == set(names)
    settings = learned["whole-3-adarank-cart+d"]
    assert (settings.start, settings.learn, settings.diversity, settings.steps) == ("cart", "both", 1.0, 7)
    assert (settings.coefficient, settings.learning_rate, settings.adapt_on) == (2.3, 5e-3, "test")
    begun = learned["whole-3-start-cart-2.3"]
    assert (begun.start, begun.coefficient, begun.steps, begun.learning_rate) == ("cart", 2.3, 1, 1e-30)


def test_static_merges_are_tested_where_learned_ones_start_and_at_their_best(chosen):
    found = {"task-arithmetic": [0.3, 0.5], "cart": [2.3], "tsv-m": [0.7, 1.0]}
    assert static_coefficients(chosen["whole"]) == found
    assert static_coefficients(chosen["lora"]) == {**found, "knots-ties": [1.2]}
    tsv = ROWS["adarank-tsv+d"], Choice(1.0, 5e-3)
    assert (start_of("lora", *tsv), start_of("whole", *tsv)) == ("tsv-m-1", "start-tsv-m-1")
    assert start_of("whole", ROWS["adamerging-ta"], Choice(0.3, 1e-3)) == "task-arithmetic-0.3"
    assert [row.name for row, _ in starts("whole", chosen["whole"])] == ["start-cart-2.3", "start-tsv-m-1"]
    assert not starts("lora", chosen["lora"])


def test_what_was_not_searched_is_named(tmp_path, chosen, capsys):
    path = tmp_path / "chosen.json"
    content = json.loads(path.read_text())
    del content["whole"]["adarank-tsv"]
    path.write_text(json.dumps(content))
    read_chosen(["lora"], path)
    with pytest.raises(SystemExit) as exit_:
        compare.main(["--chosen", str(path), "--folder", str(tmp_path / "runs")])
    assert exit_.value.code == 2
    assert "no settings of adarank-tsv for whole; choose them first with --search" in capsys.readouterr().err


def test_search_takes_the_settings_with_the_best_validation_accuracy_at_the_end(tmp_path):
    plan, coefficients = Plan(tmp_path), {"task-arithmetic": 0.5, "cart": 2.3, "tsv-m": 0.85}
    static = {name: (Choice(coefficient), 0.6) for name, coefficient in coefficients.items()}
    for row, choice in search.candidates(static):
        good = choice.learning_rate == 2e-2 and choice.coefficient == coefficients[STARTS[ROWS[row].start]]
        folder = plan.adaptation_folder("lora", 0, search.label(row, choice))
        folder.mkdir(parents=True)
        lines = ["step,epoch,variant,task,metric,value"]
        for step, value in ((1, 0.9), (2, 0.7 if good else 0.6)):
            lines += [f"{step},0,x,{task},accuracy,{value}" for task in TASKS]
        (folder / "history.csv").write_text("\n".join(lines) + "\n")
    tried = [choice.coefficient for name, choice in search.candidates(static) if name == "adarank-tsv"]
    assert tried == [0.85] * 3 + [1.0] * 3  # the best static merge's, and the paper's
    assert (
        len([choice for name, choice in search.candidates(static) if name == "adarank-cart"]) == 3
    )  # one and the same
    jobs = search.jobs(plan, "lora", static)
    assert all(job.words[-2:] == ("--test_after_fit", "false") and "val" in job.words for job in jobs)
    tried = search.learned_trials(plan, "lora", static)
    assert len(jobs) == len(tried)
    assert search.best(tried)["adarank-cart"] == (Choice(2.3, 2e-2), 0.7)
    assert search.best([("cart", Choice(1.0), 0.6), ("cart", Choice(2.0), 0.6)])["cart"][0] == Choice(1.0)


def test_tables_and_picture_are_made_of_the_results_of_all_runs(tmp_path, chosen):
    plan, seeds, console = Plan(tmp_path / "runs", steps=300), (0, 1, 2), Console(width=200, record=True)
    made_up_runs(plan, chosen, seeds)
    compare.write_tables(plan, WORLDS, seeds, chosen, console)
    lines = (plan.folder / "comparison.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith("| adarank-cart |"))
    # values 0.6, 0.62, 0.64 and 0.6; means 0.6, 0.61, 0.62; each 0.05 above its start
    assert row == "| adarank-cart | 62.0 | 60.0 | 61.0 ± 1.0 | +5.0 ± 0.0 | 50 % | 44 |"
    assert "| tsv-m-0.7 | 52.0 | 60.0 | 56.0 ± 1.0 | - | - | - |" in lines
    assert "| adamerging-ta |" in "".join(lines) and lines.count(row) == 2
    table = tables.tidy_csv(tables.read_entries(plan, ["lora"], [1], chosen)).splitlines()
    assert "lora,adarank-ta,1,hue,0.62,task-arithmetic-0.3,42.0,0.5,0.005" in table
    assert (plan.folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "adarank-tsv+d" in console.export_text()


def test_one_seed_has_no_deviation(tmp_path, chosen):
    plan = Plan(tmp_path / "runs")
    made_up_runs(plan, chosen, [0])
    world = tables.World.of("lora", tables.read_entries(plan, ["lora"], [0], chosen))
    assert world.cells("adarank-cart")[2:4] == ["60.0", "+5.0"]
    tables.picture([world])


def test_a_command_that_ended_well_is_not_run_again_and_one_that_fails_says_why(tmp_path):
    count = tmp_path / "count"
    script = (
        f"from pathlib import Path; p = Path({str(count)!r}); p.write_text(p.read_text() + 'x' if p.exists() else 'x')"
    )
    job = Job("good", ("-c", script), count)
    names = [next(compare.run_jobs([job], tmp_path, 2)) for _ in range(2)]
    assert names == ["good", "good (done before)"] and count.read_text() == "x"
    count.unlink()
    assert list(compare.run_jobs([job], tmp_path, 1)) == ["good"]  # what it wrote had gone
    bad = Job("bad", ("-c", "import sys; print('the reason'); sys.exit(2)"), count)
    with pytest.raises(SheetbendError, match="bad ended with status 2: the reason"):
        list(compare.run_jobs([bad], tmp_path, 1))


def test_whole_fine_tuning_changes_every_weight_and_writes_what_adaptation_reads(tiny_clip, tmp_path):
    data = StandIns(["hue"], batches_per_epoch=2)
    model = WholeImageClassifier(tiny_clip, learning_rate=1e-2, logit_scale=10.0, seed=1)
    accuracy = finetune(model, data, tmp_path / "hue", max_epochs=1, **QUIET)
    assert 0 < accuracy <= 1
    before = dict(CLIPVisionModelWithProjection.from_pretrained(tiny_clip).named_parameters())
    after = dict(CLIPVisionModelWithProjection.from_pretrained(tmp_path / "hue").named_parameters())
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    # The keys' bias moves all attention logits of a query alike: nothing depends on it.
    assert {name for name in before if name not in changed} <= {name for name in before if "k_proj.bias" in name}
    tester = ImageClassifier(tiny_clip, adapters={"hue": str(tmp_path / "hue")})
    data = StandIns(["hue"])
    data.setup()
    tester.build(data.tasks, fresh=False, data=data)
    (adapter,) = tester.adapters()
    assert len(adapter) == len(before)
    facts = {"seed": 1, "learning_rate": 1e-2, "max_epochs": 1}
    assert is_done(tmp_path / "hue", facts) and not is_done(tmp_path / "shade", facts)
    with pytest.raises(SheetbendError, match=r"trained with learning_rate 0\.01, now it is 0\.02"):
        is_done(tmp_path / "hue", {**facts, "learning_rate": 2e-2})


def test_the_script_trains_a_task_of_a_configuration_once(tiny_clip, tmp_path, capsys):
    config = yaml.safe_load(CONFIG.read_text())
    config["model"]["init_args"] |= {"backbone": tiny_clip, "warmup_steps": 0}
    config["data"] = {
        "class_path": "tests.stand_ins.StandIns",
        "init_args": {"tasks": list(TASKS), "batches_per_epoch": 1},
    }
    config["trainer"]["max_epochs"] = 2
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    words = [
        "--config",
        str(tmp_path / "config.yaml"),
        "--output",
        str(tmp_path / "models"),
        "--seed",
        "2",
        "--tasks",
        "hue",
    ]
    finetune_main(words)
    facts = json.loads((tmp_path / "models" / "hue" / "finetuning.json").read_text())
    assert (facts["seed"], facts["max_epochs"]) == (2, 2)
    capsys.readouterr()
    finetune_main(words)
    assert "hue: trained already" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        finetune_main([*words, "--learning_rate", "0.1"])
    assert exit_.value.code == 2 and "give another --output" in capsys.readouterr().err


def test_static_merges_are_what_adapters_are_adapted_from(tiny_clip):
    adapters = lora_clip(tiny_clip)[0].adapters()
    for start, method, coefficient in (("task_arithmetic", "task-arithmetic", 0.3), ("cart", "cart", 2.3)):
        begun = AdaRank(start, coefficient=coefficient).prepare(adapters)
        begun = begun.merged(begun.first_logits(), begun.first_coefficients()).dense()
        config = merger("lora", method, coefficient)
        if isinstance(config["method"], dict):
            config["method"] = Cart(**config["method"]["init_args"])
        static = Merger(**config).merge(adapters).dense()
        for module, update in static.items():
            torch.testing.assert_close(begun[module], update, atol=1e-5, rtol=1e-4)


def test_answers_of_a_test_are_summed_up_by_variant_and_task(tiny_clip):
    tester, data = lora_clip(tiny_clip)
    collect = answers.AnswersCallback()
    trainer = Trainer(**QUIET, logger=False, enable_checkpointing=False, callbacks=[collect])
    trainer.test(tester, datamodule=data, verbose=False)
    found = {0: collect.answers()}
    measured = {(score.variant, score.task): score.value for score in headline_scores(tester.scores())}
    assert {(one.variant, one.task): pytest.approx(one.accuracy) for one in found[0]} == measured
    for one in found[0]:
        assert 0 < one.entropy < math.log(one.classes) and 1 / one.classes <= one.favourite <= 1


def test_entropy_and_accuracy_are_shown_task_by_task():
    def one(variant, task, accuracy, entropy):
        return answers.Answers(variant, task, 3, accuracy, entropy, 0.5)

    found = {
        seed: [
            *(one("pretrained", task, 0.2, 1.0) for task in TASKS),
            one("cart-1", "hue", 0.4, 0.8 + seed),
            one("cart-1", "shade", 0.4, 1.2),
            one("adarank-cart", "hue", 0.6, 0.2),
            one("adarank-cart", "shade", 0.1, 0.1),
        ]
        for seed in (0, 1)
    }
    starts = {"adarank-cart": "cart-1"}
    lines = answers.markdown(found, starts).splitlines()
    assert lines[0] == "| variant | hue (3) | shade (3) |"
    assert "| cart-1 | 40 / 1.30 / 50 | 40 / 1.20 / 50 |" in lines
    assert "| adarank-cart (from cart-1) | 60 / 0.20 / 50 | 10 / 0.10 / 50 |" in lines
    assert lines[-1].endswith("| +1.00 |") and answers.order(found, "hue") < 0
    assert answers.tidy_csv({"lora": found}).splitlines()[1] == "lora,0,pretrained,hue,3,0.2,1.0,0.5"
    answers.picture(found, starts)


def test_libraries_deprecations_stay_off_the_screen_of_scripts():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quiet_libraries()
        warnings.warn("`is_gradient_checkpointing` is deprecated", FutureWarning, stacklevel=1)
        warnings.warn("this one matters", UserWarning, stacklevel=1)
    assert [str(one.message) for one in seen] == ["this one matters"]


def test_what_is_explained_is_what_was_compared(chosen, tmp_path, capsys):
    plan = Plan(tmp_path)
    for world, starts_of in (("lora", "mergers.Cart"), ("whole", "start-cart-2.3")):
        starting = [row.name for row, _ in starts(world, chosen[world])]
        for name in (*ROWS, *starting):
            (plan.adaptation_folder(world, 1, name) / "merged").mkdir(parents=True)
        command = explain.words(plan, world, 1, chosen[world])
        read = ConfigurationOnly(command[1:]).config["fit"]
        merges, collect = read.trainer.callbacks
        found = merges.init_args.mergers
        assert {*ROWS} <= {*found} and collect.class_path == "examples.adaptation.answers.AnswersCallback"
        assert found["adarank-cart+d"] == str(tmp_path / f"{world}-1" / "adaptations" / "adarank-cart+d" / "merged")
        assert starts_of in str(found)
    with pytest.raises(SystemExit) as exit_:
        explain.main(["--chosen", str(tmp_path / "none.json"), "--folder", str(tmp_path)])
    assert exit_.value.code == 2 and "choose them first with --search" in capsys.readouterr().err
