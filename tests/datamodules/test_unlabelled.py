"""Batches without labels: what they hold, in which order, and that labels go nowhere."""

from types import SimpleNamespace

import pytest
import torch

from datamodules import ArrayData, UnlabelledBatches
from lightning_modules import Adaptation
from mergers import SheetbendError
from tests.lightning_modules.adapting import adapt, assert_same_state, lora_clip
from tests.stand_ins import StandIns


def loaded(tasks=("hue", "shade"), **options):
    data = StandIns(list(tasks), **options)
    data.setup()
    return data


def keys(batches):
    """The examples that a loader's sampler gives, by step."""
    return [dict(key) for key in batches.train_dataloader().sampler]


class Wrong(StandIns):
    """The same examples, with labels that are all wrong."""

    def load(self, task):
        splits = super().load(task)
        classes = len(self.task(task).class_names)
        return {name: ArrayData(data.inputs, (data.labels + 1) % classes) for name, data in splits.items()}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_labels_never_reach_what_is_learned(split, tiny_clip, tmp_path):
    settings = Adaptation(steps=6, batch_size=8, look_every=3, adapt_on=split, learning_rate=0.02)
    right, wrong = (
        adapt(lora_clip(tiny_clip, data=kind(["hue", "shade"])), tmp_path, settings) for kind in (StandIns, Wrong)
    )
    assert_same_state(right, wrong)
    assert right.scores() != wrong.scores()  # where labels are for looking


def test_batches_hold_one_batch_of_every_task_and_no_labels():
    for workers in (0, 2):
        data = loaded(num_workers=workers)
        steps = list(UnlabelledBatches(data, "val", batch_size=16, steps=3).train_dataloader())
        assert len(steps) == 3 and [[batch.task for batch in step] for step in steps] == [["hue", "shade"]] * 3
        assert all(batch.labels is None and batch.references is None for step in steps for batch in step)
        assert [len(batch.inputs) for step in steps for batch in step] == [16, 16, 16, 16, 8, 8]
    split = data.split("hue", "val")
    seen = torch.cat([step[0].inputs for step in steps])
    assert sorted(split.inputs.flatten(1).sum(1).tolist()) == sorted(seen.flatten(1).sum(1).tolist())  # one pass


def test_order_depends_on_seed_task_and_pass_alone():
    data = loaded()
    one = keys(UnlabelledBatches(data, "val", batch_size=8, steps=10, seed=1))
    assert one == keys(UnlabelledBatches(data, "val", batch_size=8, steps=10, seed=1))
    alone = keys(UnlabelledBatches(loaded(["shade"]), "val", batch_size=8, steps=10, seed=1))
    assert [step["shade"] for step in one] == [step["shade"] for step in alone]
    other = keys(UnlabelledBatches(data, "val", batch_size=8, steps=10, seed=2))
    assert one != other
    first, second = ([index for step in one[start : start + 5] for index in step["hue"]] for start in (0, 5))
    assert sorted(first) == sorted(second) == list(range(40)) and first != second


def test_a_fraction_is_chosen_by_the_seed_and_is_the_same_in_every_pass():
    data = loaded()
    batches = UnlabelledBatches(data, "test", fraction=0.2, batch_size=4, steps=6)
    assert [len(chosen) for chosen in batches.examples.values()] == [9, 9]
    used = {index for step in keys(batches) for index in step["hue"]}
    assert used == set(batches.examples["hue"].tolist())
    assert set(UnlabelledBatches(data, "test", fraction=0.2, seed=1).examples["hue"].tolist()) != used
    with pytest.raises(SheetbendError, match=r"fraction 0.01 of the 45 examples of its test split leaves none"):
        UnlabelledBatches(data, "test", fraction=0.01)


@pytest.mark.parametrize("size", [1, 16, 32, 64])
def test_processes_share_the_examples(size):
    """Each of them sees its own part, all have something to do, and nothing is seen twice."""
    data = loaded(eval_batch_size=size)
    batches = UnlabelledBatches(data, "val", batch_size=8, steps=4)
    whole = keys(UnlabelledBatches(data, "val", batch_size=8, steps=12))
    seen, trained = [], []
    for rank in range(3):
        batches.trainer = SimpleNamespace(global_rank=rank, world_size=3, accumulate_grad_batches=1)
        hue, shade = (list(loader) for loader in batches.test_dataloader())
        assert {batch.task for batch in hue} == {"hue"} and {batch.task for batch in shade} == {"shade"}
        seen += [picture for batch in hue if batch.inputs is not None for picture in batch.inputs]
        trained.append(keys(batches))
    pictures = data.split("hue", "test").inputs
    assert sorted(one.flatten().tolist() for one in seen) == sorted(one.flatten().tolist() for one in pictures)
    assert [step for steps in zip(*trained, strict=True) for step in steps] == whole
