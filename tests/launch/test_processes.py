"""The command line in two processes: said once, written once, counted once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.testing import assert_close

from callbacks.results import Results
from launch.cli import main
from tests.launch.test_cli import CONFIG, refused

ROOT = Path(__file__).resolve().parents[2]


def sheetbend(*words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    command = [sys.executable, "-m", "launch", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def runs(tiny_clip, tmp_path_factory):
    """A run in one process and one in two, each with its part of the same batches, and what the second printed."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "in.yaml").write_text(CONFIG.format(model=tiny_clip, root=folder / "run"))
    common = ["fit", "--config", str(folder / "in.yaml"), "--model.lora.dropout", "0", "--trainer.default_root_dir"]
    main([*common, str(folder / "one"), "--data.batch_size", "18"])
    done = sheetbend(*common, str(folder / "two"), "--data.batch_size", "9", "--trainer.devices", "2")
    return folder, done


def test_two_processes_train_and_test_what_one_does(runs):
    folder, _ = runs
    one, two = (Results.from_json((folder / name / "results.json").read_text()) for name in ("one", "two"))
    key = ("variant", "task", "metric", "count")
    assert [[getattr(score, name) for name in key] for score in two.scores] == [
        [getattr(score, name) for name in key] for score in one.scores
    ]
    assert [score.value for score in two.scores] == pytest.approx([score.value for score in one.scores])
    for task in ("hue", "shade"):
        mine, theirs = (
            load_file(folder / name / "adapters" / task / "adapter_model.safetensors") for name in ("one", "two")
        )
        assert_close(theirs, mine, rtol=0, atol=1e-5)


def test_what_two_processes_do_is_said_and_written_once(runs):
    folder, done = runs
    lines = done.stdout.splitlines()
    assert sum(line.startswith("epoch 1/2") for line in lines) == sum("knots-ties" in line for line in lines) == 1
    assert "warning" not in done.stderr.lower() and "Traceback" not in done.stderr
    assert (folder / "two" / "history.csv").read_text().splitlines() != []
    one, two = (sorted(p.relative_to(folder / n).as_posix() for p in (folder / n).rglob("*")) for n in ("one", "two"))
    assert [name for name in two if "tfevents" not in name] == [name for name in one if "tfevents" not in name]
    for variant in ("training", "finetuned", "knots-ties"):
        files = [len(list((folder / name / "tensorboard" / variant).iterdir())) for name in ("one", "two")]
        assert files[0] == files[1]
    events = EventAccumulator(str(folder / "two" / "tensorboard" / "knots-ties"))
    events.Reload()
    assert [event.step for event in events.Scalars("val_accuracy/hue")] == [6, 12]


def test_another_number_of_processes_does_not_go_on_with_a_run(runs, capsys):
    folder, _ = runs
    words = ["fit", "--config", str(folder / "two" / "config.yaml"), "--trainer.devices", "1"]
    assert "another number of devices (2 there, 1 now); give --trainer.devices 2" in refused(capsys, *words)


@pytest.mark.parametrize("verb", ["search", "analyse"])
def test_what_takes_one_process_says_so(runs, capsys, verb):
    folder, _ = runs
    words = [verb, *(["tasks"] if verb == "analyse" else []), "--config", str(folder / "one" / "config.yaml")]
    over = ["--search.over", "{density: [0.2, 0.3]}"] if verb == "search" else []
    line = refused(capsys, *words, *over, "--trainer.devices", "2")
    assert f"make 2 processes; {verb} runs in one, give --trainer.devices 1" in line
