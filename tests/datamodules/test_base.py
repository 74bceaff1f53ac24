from dataclasses import replace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules import ArrayData
from mergers import SheetbendError
from tests.stand_ins import StandIns


class Recorder(LightningModule):
    """Notes the batches it sees, and changes a weight so that Lightning has something to do."""

    finished_tasks = ()

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch.task, None if batch.labels is None else batch.labels.tolist()))
        if batch.labels is None:
            return None
        return self.weight * batch.inputs.float().mean()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.seen.append(("val", dataloader_idx, batch.task, len(batch.labels)))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(datamodule, module=None, ckpt_path=None, **flags):
    module = module or Recorder()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    flags = {"max_epochs": 2, "num_sanity_val_steps": 0, "enable_checkpointing": False, **flags}
    Trainer(**quiet, **flags).fit(module, datamodule, ckpt_path=ckpt_path, weights_only=True)
    return module.seen


def of(task, seen):
    return [entry for entry in seen if entry[1] == task]


def test_lightning_sees_the_turns_and_each_validation_loader():
    seen = fit(StandIns(["hue", "shade"]), max_epochs=1)
    assert [entry[1] for entry in seen[:11]] == ["hue", "shade"] * 5 + ["hue"]
    assert seen[11:] == [("val", 0, "hue", 32), ("val", 0, "hue", 8), ("val", 1, "shade", 32), ("val", 1, "shade", 8)]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("batches", [None, 3, {"hue": 2, "tint": 4, "shade": 3}])
def test_batches_are_the_same_alone_and_together(accumulate, batches):
    together = fit(StandIns(["hue", "tint", "shade"], batches_per_epoch=batches), accumulate_grad_batches=accumulate)
    own = {"tint": batches["tint"]} if isinstance(batches, dict) else batches
    alone = fit(StandIns(["tint"], batches_per_epoch=own), accumulate_grad_batches=accumulate)
    assert of("tint", together) == of("tint", alone)


def test_overfit_batches_repeats_the_first_batches_of_the_turns():
    seen = fit(StandIns(["hue", "shade"]), overfit_batches=4, limit_val_batches=0)
    first, second = ([entry[1:] for entry in seen if entry[0] == epoch] for epoch in (0, 1))
    whole = fit(StandIns(["hue", "shade"]), max_epochs=1, limit_val_batches=0)
    assert first == second == [entry[1:] for entry in whole[:4]]


def test_epochs_and_seeds_change_the_order():
    seen = of("hue", fit(StandIns(["hue"])))
    epochs = [[labels for epoch, _, labels in seen if epoch == number] for number in (0, 1)]
    assert epochs[0] != epochs[1]
    assert seen != of("hue", fit(StandIns(["hue"], seed=1)))


def test_workers_change_nothing():
    assert fit(StandIns(["hue", "shade"], num_workers=2)) == fit(StandIns(["hue", "shade"]))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [9, 11, 15, 18])
def test_a_resumed_run_sees_the_batches_that_are_left(tmp_path, workers, step):
    """Epochs have 11 batches, with the last one alone at its end: checkpoints before, at and after an epoch's end."""

    def train(**flags):
        return fit(StandIns(["hue", "shade"], num_workers=workers), max_epochs=3, limit_val_batches=0, **flags)

    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=step, save_top_k=-1, save_on_train_epoch_end=False)
    whole = train(callbacks=[saver], enable_checkpointing=True)
    assert len(whole) == 33
    assert train(ckpt_path=tmp_path / f"step={step}.ckpt") == whole[step:]


def test_a_run_resumed_between_epochs_sees_the_batches_that_are_left(tmp_path):
    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    whole = fit(StandIns(["hue", "shade"]), callbacks=[saver], enable_checkpointing=True, limit_val_batches=0)
    resumed = fit(StandIns(["hue", "shade"], num_workers=2), ckpt_path=tmp_path / "epoch=0.ckpt", limit_val_batches=0)
    assert resumed == whole[11:]


def test_a_finished_task_gets_empty_turns():
    module = Recorder()
    module.finished_tasks = ("hue",)
    seen = fit(StandIns(["hue", "shade"]), module, max_epochs=1)
    assert all(labels is None for _, _, labels in of("hue", seen))
    assert all(labels is not None for _, _, labels in of("shade", seen))


def test_the_seed_of_seed_everything_is_taken(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert StandIns(["hue"]).seed == 5
    assert StandIns(["hue"], seed=2).seed == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ["hu"]}, r"unknown task 'hu'; known tasks: hue, tint, shade \(did you mean 'hue'\?\)"),
        ({"tasks": []}, "data.tasks is empty"),
        ({"tasks": "hue"}, r"data\.tasks is 'hue', one name; give a list of names, \['hue'\]"),
        ({"tasks": ["hue", "hue"]}, "'hue' is named twice"),
        ({"tasks": ["hue"], "batch_size": 0}, "data.batch_size is 0"),
        ({"tasks": ["hue"], "num_workers": -1}, "data.num_workers is -1"),
        ({"tasks": ["hue"], "batches_per_epoch": 0}, "data.batches_per_epoch is 0"),
        ({"tasks": ["hue"], "batches_per_epoch": -3}, "data.batches_per_epoch is -3"),
        ({"tasks": ["hue", "tint"], "batches_per_epoch": {"hue": 2}}, "differ in tint"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(arguments, message):
    with pytest.raises(SheetbendError, match=message):
        StandIns(**arguments)


def test_an_example_in_two_splits_is_refused():
    class Leaky(StandIns):
        def load(self, task):
            splits = super().load(task)
            leaked = torch.cat([splits["test"].inputs, splits["train"].inputs[5:6]])
            labels = torch.cat([splits["test"].labels, splits["train"].labels[5:6]])
            return {**splits, "test": ArrayData(leaked, labels)}

    with pytest.raises(SheetbendError, match="task hue: its train and test splits share 1 example; splits"):
        Leaky(["hue"]).setup()


def test_an_overlap_that_is_published_so_is_a_caveat():
    class Published(StandIns):
        overlap = "report"

        def load(self, task):
            self.note(task, "its pictures are noise.")
            splits = super().load(task)
            return {**splits, "val": ArrayData(splits["train"].inputs[:3], splits["train"].labels[:3])}

    datamodule = Published(["shade", "hue"])
    datamodule.setup()
    datamodule.setup()  # nothing is said twice
    shared = "its train and val splits share 3 examples, as the data are published."
    assert datamodule.caveats == [
        f"{task}: {said}" for task in ("shade", "hue") for said in ("its pictures are noise.", shared)
    ]


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_the_range_is_refused(label):
    class Odd(StandIns):
        def load(self, task):
            splits = super().load(task)
            splits["val"].labels[7] = label
            return splits

    message = f"task hue: example 7 of its val split has the label {label}, but the task's labels are 0 to 2; mend"
    with pytest.raises(SheetbendError, match=message):
        Odd(["hue"]).setup()


def test_a_label_of_an_absent_class_and_an_empty_split_are_refused():
    class Odd(StandIns):
        @classmethod
        def known_tasks(cls):
            return {"hue": replace(super().known_tasks()["hue"], absent=("green",))}

        def load(self, task):
            splits = super().load(task)
            return {name: ArrayData(s.inputs[s.labels != 1], s.labels[s.labels != 1]) for name, s in splits.items()}

    class Green(Odd):
        def load(self, task):
            return StandIns.load(self, task)

    class Empty(Odd):
        def load(self, task):
            splits = super().load(task)
            return {**splits, "test": ArrayData(splits["test"].inputs[:0], splits["test"].labels[:0])}

    Odd(["hue"]).setup()
    with pytest.raises(
        SheetbendError, match=r"task hue: example \d+ of its train split has the label 1, .* without \[1\]"
    ):
        Green(["hue"]).setup()
    with pytest.raises(SheetbendError, match="task hue: its test split has no examples"):
        Empty(["hue"]).setup()


def test_evaluation_follows_the_order_that_a_split_gives():
    class Backwards(StandIns):
        def load(self, task):
            splits = super().load(task)
            splits["test"].eval_order = lambda: list(reversed(range(45)))
            return splits

    datamodule = Backwards(["hue"], eval_batch_size=32)
    datamodule.setup()
    labels = torch.cat([batch.labels for batch in datamodule.test_dataloader()[0]])
    assert torch.equal(labels, datamodule.split("hue", "test").labels.flip(0))


def test_what_examples_are_prepared_with_is_taken_from_the_model():
    class Attached(StandIns):
        def attach(self, module):
            self.brightness = module.brightness

        def load(self, task):
            assert self.brightness == 5
            return super().load(task)

    module = Recorder()
    module.brightness = 5
    fit(Attached(["hue"]), module, max_epochs=1)


def test_fingerprints_follow_pictures_and_labels():
    datamodule = StandIns(["hue", "shade"])
    datamodule.setup()
    prints = datamodule.fingerprints()
    assert len({value for splits in prints.values() for value in splits.values()}) == 6

    class Relabelled(StandIns):
        def load(self, task):
            splits = super().load(task)
            splits["val"].labels[0] = (splits["val"].labels[0] + 1) % 2
            return splits

    other = Relabelled(["hue", "shade"])
    other.setup()
    changed = {
        (task, split)
        for task, splits in other.fingerprints().items()
        for split, value in splits.items()
        if value != prints[task][split]
    }
    assert changed == {("hue", "val"), ("shade", "val")}
    with pytest.raises(SheetbendError, match="not those that the checkpoint was trained on"):
        other.load_state_dict(datamodule.state_dict())
    datamodule.load_state_dict(datamodule.state_dict())


@pytest.mark.parametrize("world", [2, 3, 7])
def test_processes_have_their_parts_of_the_batches_that_one_would_have(world):
    def batches(datamodule, kind, **of):
        datamodule.trainer = type("Trainer", (), {"accumulate_grad_batches": 2, "overfit_batches": 0, **of})
        datamodule.trainer.lightning_module = None
        loaders = getattr(datamodule, f"{kind}_dataloader")()
        return [batch for loader in (loaders if isinstance(loaders, list) else [loaders]) for batch in loader]

    one = StandIns(["hue", "shade"], batch_size=4 * world, eval_batch_size=6 * world)
    several = StandIns(["hue", "shade"], batch_size=4, eval_batch_size=6)
    for datamodule in (one, several):
        datamodule.setup()
    for kind in ("train", "val", "test"):
        whole = batches(one, kind, global_rank=0, world_size=1)
        parts = [batches(several, kind, global_rank=rank, world_size=world) for rank in range(world)]
        assert [len(part) for part in parts] == [len(whole)] * world
        for batch, *own in zip(whole, *parts, strict=True):
            assert {part.task for part in own} == {batch.task} and batch.elsewhere == 0
            given = [part for part in own if part.labels is not None]
            size = 0 if batch.labels is None else len(batch.labels)
            assert [part.elsewhere for part in given] == [size - len(part.labels) for part in given]
            if size:
                for rank, part in enumerate(given):
                    assert torch.equal(part.inputs, batch.inputs[rank::world])
                    assert torch.equal(part.labels, batch.labels[rank::world])
                assert sum(len(part.labels) for part in given) == size


def test_arrays_must_be_pictures():
    with pytest.raises(ValueError, match="uint8"):
        ArrayData(torch.zeros(2, 3, 8, 8), torch.zeros(2))


def test_what_is_missing_is_said_by_setup_and_not_before():
    class Gone(StandIns):
        def check(self, task):
            raise SheetbendError(f"task {task}: gone")

    datamodule = Gone(["hue", "tint", "shade"])
    assert datamodule.missing() == ["task hue: gone", "task tint: gone", "task shade: gone"]
    with pytest.raises(SheetbendError, match=r"^task hue: gone \(and 2 more\)$"):
        datamodule.setup()
