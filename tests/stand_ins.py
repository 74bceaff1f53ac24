"""A datamodule of coloured 8 x 8 pictures that a few steps of training can tell apart."""

import torch

from datamodules import ArrayData, Task, TaskDataModule
from mergers.seeding import derive_generator

COLOURS = ("red", "green", "blue")
SHADES = ("dark", "light")


def coloured(task, split, size):
    """Pictures of noise in which one channel is a little brighter: red, green or blue."""
    generator = derive_generator("coloured", task, split)
    labels = torch.randint(3, (size,), generator=generator)
    pictures = torch.randint(0, 150, (size, 3, 8, 8), generator=generator)
    pictures[torch.arange(size), labels] += 60
    return ArrayData(pictures.to(torch.uint8), labels)


def shaded(task, split, size):
    """Dark and light pictures."""
    generator = derive_generator("shaded", task, split)
    labels = torch.randint(2, (size,), generator=generator)
    pictures = torch.randint(0, 150, (size, 3, 8, 8), generator=generator) + 90 * labels.view(-1, 1, 1, 1)
    return ArrayData(pictures.to(torch.uint8), labels)


TASKS = {
    "hue": (Task("hue", COLOURS, ("a photo of {}.",), label_set="colours"), coloured, 90),
    "tint": (Task("tint", COLOURS, ("a {} photo.", "{}"), label_set="colours"), coloured, 50),
    "shade": (Task("shade", SHADES, ("a photo of {}.",)), shaded, 70),
}


class StandIns(TaskDataModule):
    """Three tiny tasks of different size; two share their labels."""

    def __init__(
        self,
        tasks: list[str],
        batch_size: int = 16,
        eval_batch_size: int = 32,
        batches_per_epoch: int | dict[str, int] | None = None,
        num_workers: int = 0,
        seed: int | None = None,
    ):
        super().__init__(tasks, batch_size, eval_batch_size, batches_per_epoch, num_workers, seed)

    @classmethod
    def known_tasks(cls):
        return {name: entry[0] for name, entry in TASKS.items()}

    def load(self, task):
        _, make, size = TASKS[task]
        return {"train": make(task, "train", size), "val": make(task, "val", 40), "test": make(task, "test", 45)}
