"""``sheetbend adapt``: a learned merge beside a run's others, gone on with, refused, begun again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launch.cli import main
from lightning_modules import TestTimeAdaptation
from lightning_modules.adapter_folders import write_adapter
from tests.launch.merging import tree
from tests.launch.test_cli import CONFIG, ROOT, refused
from tests.lightning_modules.adapting import lora_clip

ADAPTATION = {"steps": 5, "batch_size": 8, "look_every": 2, "learning_rate": 0.05}
FOLDER = Path("adaptations") / "adarank-ta"


def write_run(tiny_clip, root, seed=0, tasks=("hue", "shade")):
    """Adapters as ``fit`` leaves them in a run folder, and the configuration that goes with them."""
    model, _ = lora_clip(tiny_clip, tasks, seed=seed)
    for task in model.task_names:
        write_adapter(model.model, task, root / "run" / "adapters" / task, {}, {})
    config = yaml.safe_load(CONFIG.format(model=tiny_clip, root=root / "run")) | {"adaptation": ADAPTATION}
    quiet = {"class_path": "callbacks.ResultsCallback", "init_args": {"plots": False}}
    config["trainer"]["callbacks"].append(quiet)
    config["data"]["init_args"]["tasks"] = list(tasks)
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    return root / "run", ["adapt", "--config", str(root / "config.yaml")]


@pytest.fixture
def run(tiny_clip, tmp_path):
    return write_run(tiny_clip, tmp_path)


def numbers(folder):
    """Every score of a test."""
    return json.loads((folder / "results.json").read_text())["scores"]


def interrupt(words, step):
    """Run a command that Ctrl-C ends after so many steps."""
    whole = TestTimeAdaptation.training_step

    def interrupted(module, batches, batch_idx):
        if module.global_step == step:
            raise KeyboardInterrupt
        return whole(module, batches, batch_idx)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(TestTimeAdaptation, "training_step", interrupted)
        main(words)
    assert stop.value.code == 130


def test_a_learned_merge_is_tested_beside_the_others_and_gone_on_with(run, capsys):
    folder, words = run[0] / FOLDER, run[1]
    before = tree(run[0])
    interrupt(words, 3)
    assert "same command again to go on" in capsys.readouterr().out and not (folder / "merged").exists()
    learned = []
    for more in ([], ["--adaptation.name", FOLDER.name], ["--overwrite", "true"]):  # its own name, made or given
        main([*words, *more])
        printed = capsys.readouterr().out
        going_on = f"going on from: {folder / 'checkpoints' / 'last.ckpt'}" in printed
        assert going_on is not ("--overwrite" in more) and "adarank-ta" in printed and "Traceback" not in printed
        learned.append((numbers(folder), (folder / "learned.safetensors").read_bytes()))
    assert learned[1:] == learned[:1] * 2  # done already, and begun again, beside what was gone on with
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"config.yaml", "checkpoints/last.ckpt", "report.md", "results.json", "history.csv"} <= names
    assert {"merged/adapter_model.safetensors", "learned.safetensors", "kept_rank.csv", "plots/kept_rank.png"} <= names
    assert {path: content for path, content in tree(run[0]).items() if folder not in path.parents} == before
    assert not [name for name in names if name.rpartition("/")[2].startswith(".")]
    variants = {score["variant"] for score in learned[0][0]}
    assert variants == {"pretrained", "finetuned", "mean", "knots-ties", "adarank-ta-start", "adarank-ta"}
    report = (folder / "report.md").read_text()
    assert "transductive" in report and "100% of the directions: before anything is learned" in report
    assert yaml.safe_load((folder / "config.yaml").read_text())["overwrite"] is False
    events = EventAccumulator(str(folder / "tensorboard" / "adarank-ta"))
    events.Reload()
    assert [event.step for event in events.Scalars("val_accuracy/hue")] == [0, 2, 4]
    line = refused(capsys, *words, "--adaptation.learning_rate", "0.1")
    assert "learning_rate: 0.05 there, 0.1 now" in line and "another --adaptation.name" in line


def test_a_checkpoint_of_something_else_is_refused_and_nothing_is_written(run, tiny_clip, tmp_path, capsys):
    folder, words = run[0] / FOLDER, run[1]
    main([*words, "--test_after_fit", "false"])
    capsys.readouterr()
    write_run(tiny_clip, tmp_path, seed=1)
    before = tree(run[0])
    assert "checkpoint is of other adapters: that of hue has changed since" in refused(capsys, *words)
    torch.save({"state_dict": {}, "tasks": {}, "best": {}, "epoch": 0, "global_step": 1}, tmp_path / "fit.ckpt")
    fresh = [*words, "--adaptation.name", "fresh"]
    assert "or not of an adaptation" in refused(capsys, *fresh, "--ckpt_path", str(tmp_path / "fit.ckpt"))
    assert "nope.ckpt does not exist" in refused(capsys, *fresh, "--ckpt_path", "nope.ckpt")
    line = refused(capsys, *fresh, "--adaptation.space", "knots", "--ckpt_path", str(folder / "checkpoints/last.ckpt"))
    assert "checkpoint is of other settings (space: full there, knots now)" in line
    lacking = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    del lacking["adaptation"]["entropies"]
    torch.save(lacking, tmp_path / "lacking.ckpt")
    assert "checkpoint lacks entropies" in refused(capsys, *fresh, "--ckpt_path", str(tmp_path / "lacking.ckpt"))
    line = refused(capsys, *words, "--overwrite", "true", "--ckpt_path", str(folder / "checkpoints/last.ckpt"))
    assert "last.ckpt, which this run starts from" in line
    assert tree(run[0]) == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--adaptation.name", "mean"],
            "stands for something else (callbacks.MergeCallback has a merge of this name, or of that with -start",
        ),
        (["--adaptation.name", "finetuned"], "adaptation.name 'finetuned' stands for something else"),
        (["--adaptation.start", "tsv", "--adaptation.space", "knots"], "use space full with it"),
        (["--adaptation.start", "tvs"], "expected one of task_arithmetic, cart, tsv, not 'tvs'"),
        (["--adaptation.step", "1"], "did you mean 'steps'?"),
        (["--adaptation.learning_rate", "1e30"], "is nan at step 2; give a smaller adaptation.learning_rate"),
        (["--adaptation.learning_rate", "1e38"], "adaptation.learning_rate is 1e+38; give a number above 0 and below"),
        (["--adaptation.learning_rate", "x"], "adaptation.learning_rate: expected float, not 'x'"),
        (["--adaptation.steps", "9" * 22], "adaptation.steps is 9999999999999999999999; give a number of at least 1"),
        (["--adaptation.coefficient", "1e18"], "AdaRank coefficient is 1e+18; give one of at most 1e+06"),
        (["--adaptation.temperature", "1e-300"], "AdaRank temperature is 1e-300; give one from 1e-06 to 1e+06"),
        (["--adaptation.diversity", "1e300"], "adaptation.diversity is 1e+300; give a number of at least 0 and below"),
        (["--adaptation.betas", "[0.9]"], "adaptation.betas: expected a tuple with 2 elements, not [0.9]"),
        (["--adaptation", "5"], "adaptation: expected null or a mapping, not '5'"),
        (["--trainer.barebones", "true"], "trainer: `Trainer(barebones=True"),
        (["--adaptation.leave_out", "."], "leave_out '.' leaves nothing to merge"),
    ],
)
def test_what_the_user_can_fix_is_one_line(run, capsys, words, expected):
    before = tree(run[0])
    assert expected in refused(capsys, *run[1], *words)
    left = {path for path in tree(run[0]) if path not in before}
    if "1e30" not in words:  # this is found out on the way
        assert not left
    assert not [path for path in left if "merged" in path.parts or path.name.startswith("results")]


def test_checkpoints_and_early_stopping_of_training_are_left_to_it(run, tmp_path, capsys):
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    kept = tmp_path / "kept" / "best.ckpt"
    kept.parent.mkdir()
    kept.write_text("of training")
    callbacks = {
        "ModelCheckpoint": {"dirpath": str(kept.parent), "filename": "best", "enable_version_counter": False},
        "EarlyStopping": {"monitor": "val_score"},
    }
    for name, arguments in callbacks.items():
        one = {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": arguments}
        config["trainer"]["callbacks"].append(one)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    main([*run[1], "--test_after_fit", "false"])
    assert "ModelCheckpoint, EarlyStopping left to fit" in capsys.readouterr().out
    assert kept.read_text() == "of training" and [*kept.parent.iterdir()] == [kept]
    assert (run[0] / FOLDER / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
def test_lengths_of_training_are_left_to_it(run, capsys):
    """And what would begin each window with the same batches is not done."""
    learned = []
    for more in ([], ["--trainer.max_steps", "2", "--trainer.max_time", "00:00:00:01"],
                 ["--trainer.reload_dataloaders_every_n_epochs", "1"]):  # fmt: skip
        main([*run[1], *more, "--test_after_fit", "false", "--overwrite", "true"])
        said = "trainer.max_steps and max_time: left to fit" in capsys.readouterr().out
        assert said == ("--trainer.max_steps" in more)
        learned.append((run[0] / FOLDER / "learned.safetensors").read_bytes())
    assert learned[1:] == learned[:1] * 2


def test_a_result_without_checkpoint_is_not_replaced_unasked(run, capsys):
    words = [*run[1], "--trainer.enable_checkpointing", "false", "--test_after_fit", "false"]
    main(words)
    capsys.readouterr()
    before = tree(run[0])
    assert "learning_rate: 0.05 there, 0.1 now" in refused(capsys, *words, "--adaptation.learning_rate", "0.1")
    assert tree(run[0]) == before


def test_what_was_adapted_says_so_wherever_it_is_tested(run, tmp_path, capsys):
    """And how many steps made it, and nobody removes a merge that the same command would test."""
    with pytest.MonkeyPatch.context() as patch:  # a plateau wherever it looks
        patch.setattr("lightning_modules.test_time_adaptation.on_plateau", lambda entropies: len(entropies) == 2)
        main([*run[1], "--test_after_fit", "false", "--adaptation.stop", "plateau"])
    capsys.readouterr()
    merged = run[0] / FOLDER / "merged"
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config["trainer"]["callbacks"][0]["init_args"]["mergers"] = {"learned": str(merged)}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    main(["test", *run[1][1:]])
    report = (run[0] / "report.md").read_text()
    assert f"{merged}: adarank-ta was adapted to the test examples themselves" in report
    assert "masks and coefficients learned in 4 steps" in report and f"read from {merged}" in report
    capsys.readouterr()
    assert "would remove" in refused(capsys, *run[1], "--overwrite", "true")
    assert merged.is_dir()


def test_hardly_a_mask_can_change_in_few_small_steps(run):
    with pytest.warns(UserWarning, match="hardly a mask can change in 5 steps at learning rate 0.001"):
        main([*run[1], "--test_after_fit", "false", "--adaptation.learning_rate", "1e-3"])


@pytest.mark.slow
def test_the_script_adapts_to_validation_data_without_a_caveat(run):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "launch" / "adapt.py"), *run[1][1:], "--adaptation.adapt_on", "val"]
    options = {"capture_output": True, "text": True, "check": False}
    done = subprocess.run([*command, "--adaptation.start", "cart"], env=environment, cwd=ROOT, **options)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr, done.stderr
    report = (run[0] / "adaptations" / "adarank-cart" / "report.md").read_text()
    assert "transductive" not in report and "unlabelled val data" in report and "python launch/adapt.py" in report


def test_fast_dev_run_writes_nothing(run):
    """Nor does it mind a callback that is for `fit`."""
    before = tree(run[0])
    main([*run[1], "--trainer.fast_dev_run", "true", "--trainer.callbacks+=callbacks.AdapterCheckpoint"])
    assert tree(run[0]) == before
