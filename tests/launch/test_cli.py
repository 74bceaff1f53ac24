import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from peft import PeftModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import CLIPVisionModelWithProjection

from callbacks.results import Results
from launch.cli import FITTING, main
from lightning_modules import LoRATasks

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
seed_everything: 0
model:
  class_path: lightning_modules.ImageClassifier
  init_args:
    backbone: {model}
    lora: {{r: 4}}
    learning_rate: 0.01
data:
  class_path: tests.stand_ins.StandIns
  init_args:
    tasks: [hue, shade]
    batches_per_epoch: 3
trainer:
  accelerator: cpu
  default_root_dir: {root}
  max_epochs: 2
  callbacks:
    - class_path: callbacks.MergeCallback
      init_args:
        mergers:
          mean: {{space: full, method: mean}}
          knots-ties: {{space: knots, method: {{class_path: mergers.Ties, init_args: {{density: 0.3}}}}}}
"""


@pytest.fixture
def config(tiny_clip, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(model=tiny_clip, root=tmp_path / "run"))
    return str(path)


@pytest.fixture(scope="module")
def fitted(tiny_clip, tmp_path_factory):
    """A finished run, and what it printed."""
    folder = tmp_path_factory.mktemp("fitted")
    (folder / "in.yaml").write_text(CONFIG.format(model=tiny_clip, root=folder / "run"))
    done = sheetbend("fit", "--config", str(folder / "in.yaml"))
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout


def sheetbend(*words, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    command = [sys.executable, "-m", "launch", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False, **options)


def refused(capsys, *words):
    """Run a command that must fail as the user's fault; return its one line."""
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    lines = [line for line in error.splitlines() if line.startswith("sheetbend: error: ")]
    assert len(lines) == 1 and "Traceback" not in error
    return lines[0]


def test_a_run_leaves_everything_a_reader_needs(fitted):
    run, printed = fitted
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    for task in ("hue", "shade"):
        for file in ("adapter_config.json", "adapter_model.safetensors", "head.safetensors", "metrics.json"):
            assert f"adapters/{task}/{file}" in names
    assert {"config.yaml", "history.csv", "results.json", "results.csv", "report.md", "checkpoints/last.ckpt"} <= names
    assert "plots/bars.png" in names and "plots/curves.png" in names
    assert not [name for name in names if name.rpartition("/")[2].startswith(".")]
    for variant in ("pretrained", "finetuned", "mean", "knots-ties"):
        assert variant in printed
    assert "epoch 2/2" in printed and "Traceback" not in printed


def test_results_agree_with_each_other(fitted):
    run, _ = fitted
    with (run / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if row["task"] != "mean"]
    finetuned = {r["task"]: float(r["value"]) for r in rows if (r["variant"], r["metric"]) == ("finetuned", "accuracy")}
    assert set(finetuned) == {"hue", "shade"}
    for row in rows:
        if row["metric"] == "accuracy":
            assert float(row["normalised"]) == pytest.approx(float(row["value"]) / finetuned[row["task"]], abs=1e-6)
    assert {row["variant"] for row in rows} == {"pretrained", "finetuned", "mean", "knots-ties"}
    assert Results.from_json((run / "results.json").read_text()).value("finetuned", "hue") == finetuned["hue"]


def test_event_files_hold_merged_and_finetuned_curves_under_one_tag(fitted):
    run, _ = fitted
    for variant in ("finetuned", "mean", "knots-ties"):
        events = EventAccumulator(str(run / "tensorboard" / variant))
        events.Reload()
        assert [event.step for event in events.Scalars("val_accuracy/hue")] == [6, 12]
    training = EventAccumulator(str(run / "tensorboard" / "training"))
    training.Reload()
    assert training.Scalars("train_loss/hue")


def test_peft_loads_the_adapters(fitted, tiny_clip):
    run, _ = fitted
    base = CLIPVisionModelWithProjection.from_pretrained(tiny_clip)
    assert PeftModel.from_pretrained(base, run / "adapters" / "hue").peft_config["default"].r == 4


def copy(fitted, tmp_path):
    """A copy of the finished run, and a configuration that points to it."""
    shutil.copytree(fitted[0], tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    config["trainer"]["default_root_dir"] = str(tmp_path / "run")
    (tmp_path / "copy.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return tmp_path / "run", str(tmp_path / "copy.yaml")


def numbers(run):
    """Variant, task, metric and value of every score."""
    return [line.split(",")[:4] for line in (run / "results.csv").read_text().splitlines()]


def test_every_subcommand_reads_what_fit_has_written(fitted, tmp_path, capsys):
    run, config = copy(fitted, tmp_path)
    before = numbers(run)
    (run / "results.csv").unlink()
    saved = (run / "config.yaml").read_bytes()
    main(["test", "--config", config])
    assert numbers(run) == before
    assert (run / "config.yaml").read_bytes() == saved
    assert (run / "test_config.yaml").is_file()
    main(["validate", "--config", str(run / "test_config.yaml")])
    assert "knots-ties" in capsys.readouterr().out
    # And again without training anything, since nothing has changed.
    main(["fit", "--config", config])
    printed = capsys.readouterr().out
    assert "trained already" in printed and "epoch 1/2" not in printed
    assert numbers(run) == before


@pytest.mark.parametrize("verb", FITTING)
def test_the_configuration_of_a_run_is_one_of_every_subcommand(fitted, verb, capsys):
    config = str(fitted[0] / "config.yaml")
    with pytest.raises(SystemExit) as stop:
        main([verb, "--config", config, "--print_config"])
    assert stop.value.code == 0 and "tests.stand_ins.StandIns" in capsys.readouterr().out
    if verb in ("search", "analyse"):
        line = refused(capsys, verb, "--config", config, "--ckpt_path", "last.ckpt")
        assert "ckpt_path is last.ckpt, but adapters are read from folders here; give --model.adapters" in line


def test_other_settings_do_not_overwrite_a_run(fitted, tmp_path, capsys):
    run, config = copy(fitted, tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    line = refused(capsys, "fit", "--config", config, "--model.learning_rate", "0.5")
    assert "learning_rate: 0.01 there, 0.5 now" in line and "--overwrite true" in line
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    main(
        ["fit", "--config", config, "--model.learning_rate", "0.5", "--overwrite", "true", "--test_after_fit", "false"]
    )
    assert "going on from" not in capsys.readouterr().out
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["overwrite"] is False and written["model"]["init_args"]["learning_rate"] == 0.5
    assert not (run / "results.json").exists()


def test_a_run_is_not_replaced_by_what_it_would_start_from(fitted, tmp_path, capsys):
    run, config = copy(fitted, tmp_path)
    before = sorted(path for path in run.rglob("*"))
    for words in (["--ckpt_path", str(run / "checkpoints/last.ckpt")], ["--model.adapters", str(run / "adapters")]):
        assert "which this run starts from" in refused(capsys, "fit", "--config", config, "--overwrite", "true", *words)
    assert sorted(path for path in run.rglob("*")) == before


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("config.yaml", b"\xff\xfe", "config.yaml is damaged"),
        ("config.yaml", b"- a list", "config.yaml is damaged"),
        ("checkpoints/last.ckpt", b"not a checkpoint", "last.ckpt is damaged"),
    ],
)
def test_a_damaged_run_is_refused_whole(fitted, tmp_path, capsys, file, content, expected):
    run, config = copy(fitted, tmp_path)
    (run / file).write_bytes(content)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert expected in refused(capsys, "fit", "--config", config)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


SLOW_IMPORT = """
import sys, time
from launch.cli import main
from lightning_modules import LoRATasks
class Slow:
    def find_spec(self, name, *_):
        if name == "launch.lightning_cli":
            print("importing", flush=True)
            try:
                time.sleep(30)
            except BaseException:
                pass  # as some extension modules do
sys.meta_path.insert(0, Slow())
main(["fit"])
"""


def test_ctrl_c_while_python_is_still_importing_is_one_line():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SLOW_IMPORT]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=ROOT)
    assert process.stdout.readline() == b"importing\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and b"interrupted before the run began" in out
    assert b"Traceback" not in err


def test_sigterm_ends_a_test_at_once_and_says_so(config, monkeypatch, capsys):
    """Lightning alone would go on to the end of the batch, and beyond it where that is a task's last."""

    def terminated(module, *batch):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the batch went on")

    main(["fit", "--config", config, "--trainer.max_epochs", "1"])
    monkeypatch.setattr(LoRATasks, "test_step", terminated)
    with pytest.raises(SystemExit) as stop:
        main(["test", "--config", config])
    assert stop.value.code == 143
    assert "terminated: " in capsys.readouterr().out


@pytest.mark.slow
def test_ctrl_c_leaves_whole_files_and_the_same_command_goes_on(config, tiny_clip, tmp_path):
    whole = tmp_path / "whole"
    main(["fit", "--config", config, "--trainer.max_epochs", "12", "--trainer.default_root_dir", str(whole)])
    words = ["fit", "--config", config, "--trainer.max_epochs", "12"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "launch", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=ROOT,
    )
    for line in process.stdout:
        assert b"Traceback" not in line
        if line.startswith(b"epoch 3/"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    run = tmp_path / "run"
    assert process.returncode == 130
    assert b"interrupted: " in out and b"same command again" in out
    assert b"Traceback" not in out + err
    assert not [path for path in run.rglob(".*") if path.is_file()]
    assert not (run / "results.json").exists()
    main(words)
    assert numbers(run) == numbers(whole)
    assert (run / "history.csv").read_text() == (whole / "history.csv").read_text()


def test_print_config_can_be_read_back(config, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", config, "--print_config"])
    assert stop.value.code in (0, None)
    first = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(first)
    with pytest.raises(SystemExit):
        main(["test", "--config", str(tmp_path / "again.yaml"), "--print_config"])
    second = capsys.readouterr().out
    assert yaml.safe_load(first)["model"] == yaml.safe_load(second)["model"]
    assert yaml.safe_load(first)["trainer"] == yaml.safe_load(second)["trainer"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data.tasks", "[hue, shad]"], "unknown task 'shad'; known tasks: hue, tint, shade (did you mean 'shade'?)"),
        (["--model.learning_rat", "1"], "unknown option 'learning_rat' (did you mean 'learning_rate'?)"),
        (["--trainer.max_epoch", "1"], "did you mean 'max_epochs'?"),
        (["--trainer.max_epochs", "many"], "trainer.max_epochs: expected null or int, not 'many'"),
        (["--model.backbone", "no-such-model"], "backbone 'no-such-model' is no folder here and no hub id"),
        (["--model.backbone", "someone/missing"], "hf download someone/missing"),
        (["--model.lora.r", "0"], "lora.r is 0"),
        (["--model.adapters", "/nowhere"], "/nowhere has no adapter of hue, shade"),
        (["--trainer.devices", "2", "--trainer.strategy", "ddp_fork"], "strategy is ddp_fork; 2 processes work by ddp"),
        (["--trainer.strategy", "fsdp"], "trainer: The strategy `fsdp` requires a GPU accelerator"),
        (["--trainer.accelerator", "cuda"], "trainer: "),
        (["--trainer.accumulate_grad_batches", "0"], "accumulate_grad_batches is 0"),
        (["--trainer.max_epochs", "-1"], "the cosine schedule needs a length"),
        (["--seed_everything", "-1"], "seed_everything is -1"),
        (["--model.learning_rate", "-1"], "learning_rate is -1.0; give a number above 0"),
        (["--model.lora.target_modules", "[patch_embedding]"], "only linear layers merge"),
        (["--model.lora.target_modules", "[]"], "lora.target_modules is empty"),
        (["--model.lora.r", "999"], "lora.r is above 16"),
        (["--model.lora.r", "{hue: 4, shad: 2}"], "lora.r names 'shad'"),
        (["--ckpt_path", "nope.ckpt"], "checkpoint nope.ckpt does not exist"),
        (["--ckpt_path", "README.md"], "checkpoint README.md is damaged"),
    ],
)
def test_what_the_user_can_fix_is_one_line_and_nothing_is_written(config, tmp_path, capsys, words, expected):
    assert expected in refused(capsys, "fit", "--config", config, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("learning_rate", "learning_rat", "unknown option 'learning_rat' (did you mean 'learning_rate'?)"),
        ("density: 0.3", "density: 3", "Ties density is 3.0"),
        ("density: 0.3", "density: .nan", "Ties density is nan"),
        (
            "method: mean}",
            "method: mean, coefficients: {hue: 1, shad: 1}}",
            "merger mean: coefficients names the unknown",
        ),
        ("learning_rate: 0.01", "learning_rate: null", "learning_rate is None; give a number above 0"),
        ("learning_rate: 0.01", "learning_rate: .nan", "learning_rate is nan; give a number above 0"),
        ("knots-ties:", "a/b:", "merger 'a/b' must name a folder"),
        ("density: 0.3", "densty: 0.3", "unknown option 'densty' (did you mean 'density'?)"),
        ("method: mean", "method: maen", "unknown method 'maen'"),
        ("seed_everything", "seed_everthing", "unknown option 'seed_everthing' (did you mean 'seed_everything'?)"),
        ("tests.stand_ins.StandIns", "tests.stand_ins.StandIn", "StandIn"),
        ("knots-ties:", "finetuned:", "merger 'finetuned' has a name that stands for something else"),
    ],
)
def test_faults_in_a_config_are_one_line_and_nothing_is_written(config, tmp_path, capsys, old, new, expected):
    text = Path(config).read_text()
    assert old in text
    Path(config).write_text(text.replace(old, new))
    assert expected in refused(capsys, "fit", "--config", config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "place", "guess"),
    [
        ("{class_path: TextTableDataModule, init_args: {tables: {mood: {path: x, tekst: a, label: b}}}}",
         "data.tables.mood: unknown option 'tekst'", "text"),
        ("{class_path: ImageFolderDataModule, init_args: {images: {cats: {path: y}, pets: {path: x, lable: y}}}}",
         "data.images.pets: unknown option 'lable'", "label"),
        ("{class_path: GenerationDataModule, init_args: {tasks: [q], own_tasks: [{name: q, prmpt: x}]}}",
         "data.own_tasks.0: unknown option 'prmpt'", "prompt"),
    ],
)  # fmt: skip
def test_a_misspelt_field_of_a_task_is_named_with_its_place(tmp_path, config, capsys, data, place, guess):
    settings = yaml.safe_load(Path(config).read_text())
    settings["data"] = yaml.safe_load(data)
    Path(config).write_text(yaml.safe_dump(settings))
    assert f"{place} (did you mean {guess!r}?)" in refused(capsys, "fit", "--config", config)


@pytest.mark.parametrize(
    ("key", "phrases"),
    [
        ("tables", ["--data.tables.NAME.text", "the column of the text", "Where the examples of one task are"]),
        ("images", ["--data.images.NAME.class_names", "the column of the pictures"]),
        ("own_tasks", ["--data.own_tasks.prompt", "A question that a model answers in words"]),
    ],
)
def test_help_shows_the_fields_of_what_a_task_declares(capsys, key, phrases):
    with pytest.raises(SystemExit) as stop:
        main(["fit", f"--data.{key}.help"])
    assert not stop.value.code
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert all(phrase in shown for phrase in phrases)


def test_help_of_a_class_offers_nothing_that_is_refused(capsys):
    for name in ("TextTableDataModule", "ImageFolderDataModule", "GenerationDataModule"):
        with pytest.raises(SystemExit):
            main(["fit", "--data.help", name])
        offered = set(re.findall(r"--data\.\w+\.help", capsys.readouterr().out))
        assert len(offered) == 1
        for words in ([], ["--data.help", name]):
            with pytest.raises(SystemExit) as stop:
                main(["fit", *words, *offered])
            assert not stop.value.code, capsys.readouterr().err


@pytest.mark.parametrize("words", [["frobnicate"], ["fit"], ["fit", "--config", "nope.yaml"], []])
def test_incomplete_commands_are_one_line(capsys, words):
    refused(capsys, *words)


def test_adapters_of_another_base_or_none_are_refused_in_test(fitted, tmp_path, capsys):
    run, config = copy(fitted, tmp_path)
    file = run / "adapters" / "hue" / "adapter_config.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": "openai/clip-vit-large-patch14"})
    )
    assert "its base model is openai/clip-vit-large-patch14" in refused(capsys, "test", "--config", config)
    shutil.rmtree(run / "adapters" / "hue")
    (run / "adapters" / "hue").mkdir()
    assert "adapters/hue" in refused(capsys, "test", "--config", config)
    shutil.rmtree(run / "adapters")
    assert "train first with `sheetbend fit`" in refused(capsys, "test", "--config", config)


SLOW = pytest.mark.slow  # each takes seconds to import all that it names


@pytest.mark.parametrize("script", ["fit", pytest.param("validate", marks=SLOW), pytest.param("test", marks=SLOW)])
def test_scripts_work_from_any_folder(script, tmp_path):
    command = [sys.executable, str(ROOT / "launch" / f"{script}.py"), "--help"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: sheetbend [options] {script} ")


def test_help_says_what_options_mean(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--model.help", "lightning_modules.ImageClassifier"])
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for phrase in ("optimiser steps of one task", "validations in a row", "factor on the cosine", "rank; one number"):
        assert phrase in text
    with pytest.raises(SystemExit):
        main(["fit", "--data.help", "datamodules.QuickstartDataModule"])
    assert "training batches of each task in an epoch" in re.sub(r"\s+", " ", capsys.readouterr().out)


def test_fast_dev_run_writes_nothing(config, tmp_path, capsys):
    main(["fit", "--config", config, "--trainer.fast_dev_run", "true"])
    assert not (tmp_path / "run").exists()
    assert "Traceback" not in capsys.readouterr().err
