"""What a run shows of how far it has come: plain lines without a terminal, bars in one."""

import io
import itertools
import math
import re
from types import SimpleNamespace

import pytest
import rich
from lightning.pytorch import LightningModule

from callbacks.progress import PlainProgress, TerminalProgress
from lightning_modules import Adaptation, TestTimeAdaptation
from lightning_modules.scores import Score
from tests.lightning_modules.adapting import adapt, lora_clip

HUE = Score("adarank-ta", "hue", "accuracy", 0.851, 9)
SHADE = Score("adarank-ta", "shade", "matthews", 0.5, 9)


class Adapting(TestTimeAdaptation):
    """An adaptation of nothing, of 200 steps."""

    def __init__(self, scores=(HUE,), entropy=0.611):
        LightningModule.__init__(self)
        self.settings = Adaptation(steps=200)
        self.tester = SimpleNamespace(task_names=["hue", "shade"])
        self._scores, self._window = list(scores), [] if math.isnan(entropy) else [entropy]


def fitting(module, step=20, **more):
    """A Trainer that fits ``module``."""
    state = SimpleNamespace(fn="fit")
    flags = {"is_global_zero": True, "global_step": step, "sanity_checking": False, "training": True, "state": state}
    data = {"loggers": [], "progress_bar_metrics": {}, "callback_metrics": {}, "num_training_batches": 2}
    epochs = {"max_epochs": 3, "max_steps": -1, "current_epoch": 0}
    return SimpleNamespace(lightning_module=module, **{**flags, **data, **epochs, **more})


def plain(trainer):
    """Plain lines of ``trainer``, which the test prints."""
    progress = PlainProgress()
    progress._trainer = trainer
    return progress


@pytest.fixture
def terminal():
    """Make a bar in a terminal of 100 columns; return it and what reads the lines that were shown."""
    output = io.StringIO()

    def start(trainer=None):
        bar = TerminalProgress(console_kwargs={"file": output, "force_terminal": True, "width": 100})
        if trainer is not None:
            bar._trainer, trainer.progress_bar_callback = trainer, bar
        return bar

    yield start, lambda: re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue()).replace("\r", "\n").splitlines()
    rich.reconfigure()


@pytest.mark.parametrize(
    ("tasks", "batches", "variants", "expected"),
    [
        (["a"], 1, ["x"], ["training 1 task, 1 batch an epoch", "testing 1 variant on a"]),
        (
            ["a", "b"],
            32,
            ["x", "y"],
            ["training 2 tasks in turn, 32 batches an epoch", "testing 2 variants on a, b"],
        ),
    ],
)
def test_numbers_agree_with_their_nouns(tasks, batches, variants, expected, capsys):
    module = SimpleNamespace(task_names=tasks, variants=variants)
    trainer = fitting(module, num_training_batches=batches)
    progress = plain(trainer)
    progress.on_train_start(trainer, module)
    progress.on_test_start(trainer, module)
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({}, "validation accuracy (%): not measured"),
        ({"val_accuracy/a": 0.5, "val_accuracy/b": 0.25, "val_score": 1}, "validation accuracy (%): a 50.0  b 25.0"),
        ({"val_accuracy/a": 0.5, "val_matthews/b": 0.25, "train_loss/a": 1}, "validation score (%): a 50.0  b 25.0"),
    ],
)
def test_an_epoch_of_training_is_one_line(metrics, expected, capsys):
    trainer = fitting(SimpleNamespace(), callback_metrics=metrics)
    plain(trainer).on_train_epoch_end(trainer, trainer.lightning_module)
    assert capsys.readouterr().out == f"epoch 1/3  step 20  0 s  {expected}\n"


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([], "validation accuracy (%): not measured"),
        ([HUE], "validation accuracy (%): hue 85.1"),
        ([HUE, SHADE], "validation score (%): hue 85.1  shade 50.0"),
    ],
)
def test_an_adaptation_has_a_line_before_its_first_step_and_one_a_window(scores, expected, capsys, terminal):
    module = Adapting(scores)
    lines = [f"step 0/200  {expected}", f"step 20/200  entropy 0.6110  0 s  {expected}"]
    trainer = fitting(module, step=0)
    progress = plain(trainer)
    progress.on_sanity_check_end(trainer, module)
    trainer.global_step = 20
    progress.on_train_epoch_end(trainer, module)
    assert capsys.readouterr().out.splitlines() == lines
    start, shown = terminal
    trainer.global_step = 0
    bar = start(trainer)
    bar.on_sanity_check_start(trainer, module)
    bar.on_sanity_check_end(trainer, module)
    bar.on_train_start(trainer, module)
    trainer.global_step = 20
    bar.on_train_epoch_end(trainer, module)
    bar.teardown(trainer, module, "fit")
    assert [line for line in shown() if "validation" in line] == lines


def test_a_window_without_a_step_has_no_line(capsys, terminal):
    """Lightning closes one when a run goes on."""
    module = Adapting(entropy=math.nan)
    trainer = fitting(module)
    plain(trainer).on_train_epoch_end(trainer, module)
    bar = terminal[0](trainer)
    bar.on_train_start(trainer, module)
    bar.on_train_epoch_end(trainer, module)
    bar.teardown(trainer, module, "fit")
    assert capsys.readouterr().out == "" and not [line for line in terminal[1]() if "validation" in line]


def test_a_look_before_training_has_no_line(capsys):
    trainer = fitting(SimpleNamespace())
    plain(trainer).on_sanity_check_end(trainer, trainer.lightning_module)
    assert capsys.readouterr().out == ""


def test_the_bar_of_an_adaptation_is_over_all_steps_and_goes_on_where_it_was(terminal):
    module = Adapting()
    trainer = fitting(module, step=36, max_epochs=-1, max_steps=200)
    bar = terminal[0](trainer)
    bar.on_train_start(trainer, module)
    shown = bar.train_progress_bar
    assert (shown.description.strip(), shown.completed, shown.total) == ("step", 36, 200)
    assert shown.time_remaining is None
    clock = itertools.count(step=40)  # a step takes longer than rich looks back
    bar.progress.get_time = lambda: float(next(clock))
    for step in (37, 38, 39):
        bar.on_train_epoch_start(trainer, module)
        trainer.global_step = step
        bar.on_train_batch_end(trainer, module, None, None, 0)
        bar.on_train_epoch_end(trainer, module)
        assert shown is bar.train_progress_bar and shown.completed == step and shown.visible
    assert shown.time_remaining == 161 * 40
    bar.teardown(trainer, module, "fit")


def test_the_bar_of_training_is_that_of_an_epoch(terminal):
    module = SimpleNamespace()
    trainer = fitting(module)
    bar = terminal[0](trainer)
    bar.on_train_start(trainer, module)
    for epoch in range(2):
        trainer.current_epoch = epoch
        bar.on_train_epoch_start(trainer, module)
        bar.on_train_batch_end(trainer, module, None, None, 0)
        shown = bar.train_progress_bar
        assert (shown.description.strip(), shown.completed, shown.total) == (f"Epoch {epoch}/2", 1, 2)
        bar.on_train_epoch_end(trainer, module)
    bar.teardown(trainer, module, "fit")


def test_the_version_of_the_logger_is_not_shown(terminal):
    trainer = fitting(Adapting(), loggers=[SimpleNamespace(version="training")], progress_bar_metrics={"entropy": 0.5})
    assert terminal[0](trainer).get_metrics(trainer, trainer.lightning_module) == {"entropy": 0.5}


def test_an_adaptation_leaves_its_lines_and_one_bar_in_the_terminal(tiny_clip, tmp_path, terminal):
    start, shown = terminal
    settings = Adaptation(steps=4, batch_size=4, look_every=2)
    adapt(lora_clip(tiny_clip), tmp_path, settings, [start()], enable_progress_bar=True, num_sanity_val_steps=-1)
    lines = [re.sub(r"entropy \d\.\d{4}  \d+ s", "E", line) for line in shown()]
    found = [re.sub(r"\d+\.\d", "N", line) for line in lines if "validation" in line]
    assert found == [f"step {begin}  validation accuracy (%): hue N  shade N" for begin in ("0/4", "2/4  E", "4/4  E")]
    assert not [line for line in lines if "Epoch" in line or "Sanity" in line]
    last = [line for line in lines if line.strip()][-1]
    assert last.startswith("step") and " 4/4 " in last and "entropy: " in last
