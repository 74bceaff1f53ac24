"""Training and testing by two processes: every example once, and what one process with twice the batch gives."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision

from callbacks import AdapterCheckpoint, MergeCallback
from lightning_modules import AdapterDDP, LoRA
from mergers import SheetbendError
from tests.lightning_modules.training import QUIET, module
from tests.stand_ins import TASKS, StandIns

FLAGS = {**QUIET, "num_sanity_val_steps": 0, "enable_checkpointing": False, "use_distributed_sampler": False}
SHORT = pytest.mark.filterwarnings("ignore:.*its learning rate never reaches its peak")  # in so few steps


class Uneven(StandIns):
    """Splits that neither two processes nor their batches divide evenly; the last batches have one example."""

    def load(self, task):
        _, make, _ = TASKS[task]
        sizes = {"train": {"hue": 33, "shade": 25}[task], "val": 41, "test": {"hue": 17, "shade": 23}[task]}
        return {split: make(task, split, size) for split, size in sizes.items()}


class Report(Callback):
    """What each process has in the end, in a file of its own."""

    def __init__(self, folder):
        self.folder, self.losses = folder, []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.losses.append({key: float(loss) for key, loss in trainer.callback_metrics.items() if "loss" in key})

    def on_fit_end(self, trainer, pl_module):
        self.save(trainer, pl_module, "fit")

    def on_test_end(self, trainer, pl_module):
        self.save(trainer, pl_module, "test")

    def save(self, trainer, model, stage):
        trained = {key: p.detach() for task in model.task_names for key, p in model.task_parameters(task).items()}
        scores = {(s.variant, s.task, s.metric): (s.count, s.value) for s in model.scores()}
        progress = {task: vars(state) for task, state in model.progress.items()}
        content = {"trained": trained, "scores": scores, "progress": progress, "losses": self.losses}
        torch.save(content, self.folder / f"{stage}-{trainer.global_rank}.pt")


def run(clip, folder, processes, verb="fit", callbacks=(), patience=None, adapters=None, **flags):
    """Train or test in ``processes``, each with its part of batches of 8; return what each had in the end."""
    folder.mkdir(exist_ok=True)
    if processes > 1:
        flags |= {"devices": processes, "strategy": AdapterDDP(start_method="fork")}
    flags = FLAGS | {"max_epochs": 3} | flags
    trainer = Trainer(default_root_dir=folder, callbacks=[*callbacks, Report(folder)], **flags)
    sizes = {"batch_size": 8 // processes, "eval_batch_size": 16 // processes}
    model = module(clip, lora=LoRA(r=4, dropout=0.0), patience=patience, adapters=adapters, seed=0)
    getattr(trainer, verb)(model, Uneven(["hue", "shade"], seed=0, **sizes))
    return [torch.load(path) for path in sorted(folder.glob(f"{verb}-*.pt"))]


def assert_same(first, second):
    """Two processes have the same, to the bit."""
    for name in ("scores", "progress", "losses"):
        assert first[name] == second[name]
    for key, value in first["trained"].items():
        assert torch.equal(value, second["trained"][key]), key


def assert_alike(one, two, atol=1e-5):
    """Both processes have what one process has, to rounding."""
    first, second = two
    assert_same(first, second)
    for key, value in one["trained"].items():
        torch.testing.assert_close(first["trained"][key], value, rtol=0, atol=atol)
    assert first["scores"] == {key: (count, pytest.approx(value)) for key, (count, value) in one["scores"].items()}
    assert first["progress"] == one["progress"]
    assert [step.keys() for step in first["losses"]] == [step.keys() for step in one["losses"]]
    for mine, theirs in zip(first["losses"], one["losses"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def assert_one_stopped_first(report):
    """One task has stopped while the other went on, so that it had empty turns."""
    epochs = {task: report["progress"][task]["batches"] / batches for task, batches in (("hue", 5), ("shade", 4))}
    assert epochs["hue"] != epochs["shade"] and all(state["finished"] for state in report["progress"].values())


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"gradient_clip_val": 0.1},
        {"accumulate_grad_batches": 2},
        {"limit_train_batches": 5, "accumulate_grad_batches": 3},
        {"patience": 3, "max_epochs": 12},
    ],
    ids=str,
)
@SHORT
def test_two_processes_train_what_one_with_twice_the_batch_trains(tiny_clip, tmp_path, flags):
    (one,) = run(tiny_clip, tmp_path / "one", 1, **flags)
    two = run(tiny_clip, tmp_path / "two", 2, **flags)
    assert len(two) == 2
    assert_alike(one, two)
    assert one["progress"]["hue"]["batches"] > 0
    if "patience" in flags:
        assert_one_stopped_first(one)


def test_a_step_that_overflows_in_one_process_is_skipped_in_both(tiny_clip, tmp_path):
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=1000) for _ in range(2)]
    runs = []
    for processes, scaler in enumerate(scalers, 1):
        plugins = [MixedPrecision("16-mixed", "cpu", scaler)]
        runs.append(run(tiny_clip, tmp_path / str(processes), processes, plugins=plugins, patience=3, max_epochs=12))
    (one,), (first, second) = runs
    assert_same(first, second)
    assert_one_stopped_first(first)
    mine, theirs = (torch.cat([value.flatten() for value in each["trained"].values()]) for each in (first, one))
    assert (mine - theirs).norm() < 0.3 * theirs.norm()  # float16 rounds, over many steps


def merges():
    return MergeCallback({"mean": "mean", "knots-ties": "knots-ties"})


def test_two_processes_count_every_example_once_in_every_variant(tiny_clip, tmp_path):
    run(tiny_clip, tmp_path / "fit", 1, callbacks=[AdapterCheckpoint()])
    adapters = {task: str(tmp_path / "fit" / "adapters" / task) for task in ("hue", "shade")}
    (one,) = run(tiny_clip, tmp_path / "one", 1, "test", [merges()], adapters=adapters)
    two = run(tiny_clip, tmp_path / "two", 2, "test", [merges()], adapters=adapters)
    assert_alike(one, two)
    counts = {(variant, task): count for (variant, task, metric), (count, _) in one["scores"].items()}
    assert counts["knots-ties", "hue"] == 17 and counts["finetuned", "shade"] == 23 and counts["mean", "all"] == 40
    joint = {key for key in one["scores"] if key[2].startswith("joint") and key[1] in ("hue", "shade", "all")}
    assert {("pretrained", "all", "joint_hits@1"), ("knots-ties", "hue", "joint_hits@3")} <= joint


class Few(StandIns):
    def load(self, task):
        _, make, _ = TASKS[task]
        return {
            split: make(task, split, 1 if (task, split) == ("shade", "test") else 9)
            for split in ("train", "val", "test")
        }


def test_a_task_with_fewer_examples_than_processes_is_refused(tiny_clip):
    data = Few(["hue", "shade"])
    data.setup()
    assert [len(list(loader)) for loader in data.eval_loaders("val", 1, 2)] == [1, 1]
    with pytest.raises(SheetbendError, match="task shade: 1 examples are too few for 2 processes; give fewer devices"):
        data.eval_loaders("test", 0, 2)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            {"strategy": "ddp_fork"},
            r"strategy is DDPStrategy, in which each process would train for itself.*AdapterDDP",
        ),
        ({"use_distributed_sampler": True}, r"use_distributed_sampler is true.*give false"),
    ],
    ids=str,
)
@SHORT
def test_a_trainer_that_would_count_wrong_is_refused(tiny_clip, tmp_path, flags, expected):
    flags = FLAGS | {"strategy": AdapterDDP(start_method="fork"), "max_epochs": 1} | flags
    trainer = Trainer(default_root_dir=tmp_path, devices=2, **flags)
    with pytest.raises(Exception, match=expected):
        trainer.fit(module(tiny_clip), Uneven(["hue", "shade"]))
