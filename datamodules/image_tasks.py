"""What all image datasets share: sources of pictures become splits of uint8 squares."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.base import SPLITS, TaskDataModule
from datamodules.image_cache import ImageCache, SourceImages
from datamodules.images import ImageTransform
from datamodules.sources.image_source import ImageSource
from mergers.errors import SheetbendError

# What Lightning's stages go through: to test adapters, training pictures need not be decoded.
_NEEDED = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}


class ImageSplit:
    """Some of the pictures of a source, on disk.

    Args:
        images: all pictures of the source.
        rows: those of this split, int64 (N,).
        labels: int64 (N,).
    """

    def __init__(self, images: SourceImages, rows: np.ndarray, labels: np.ndarray):
        self.images, self.rows = images, rows
        self.labels = torch.from_numpy(np.ascontiguousarray(labels, np.int64))

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.rows)

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return uint8 (B, 3, S, S) and int64 (B,)."""
        return self.images.take(self.rows[indices]), self.labels[indices]

    def example_keys(self) -> list[bytes]:
        """Return a hash of each picture's bytes in the source."""
        return [key.tobytes() for key in self.images.keys[self.rows]]

    def eval_order(self) -> range:
        """Return the order in which the examples stand."""
        return range(len(self))


@dataclass(frozen=True)
class Part:
    """What one split is made of.

    Attributes:
        source: pictures, with labels of the task.
        rows: those that belong to the split, int64 (N,).
    """

    source: ImageSource
    rows: np.ndarray


class ImageDataModule(TaskDataModule):
    """Image tasks on disk: pictures are decoded once, to the size that the model takes, and kept in a cache.

    Without a model (no trainer), pictures come out as CLIP takes them, 224 x 224.

    Args:
        tasks: see `TaskDataModule`.
        image_cache_gb: size of the cache of decoded pictures on disk, in 10^9 bytes; what was not used for longest goes
            first, and a split that does not fit is decoded each time. 0: no cache. Results do not depend on it; but a
            damaged picture is found before training only where the cache takes it, else when its batch comes.
        batch_size: see `TaskDataModule`.
        eval_batch_size: see `TaskDataModule`.
        batches_per_epoch: see `TaskDataModule`.
        num_workers: see `TaskDataModule`.
        seed: see `TaskDataModule`.
    """

    gives = "images"

    def __init__(
        self,
        tasks: list[str],
        image_cache_gb: float = 20.0,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        batches_per_epoch: int | dict[str, int] | None = None,
        num_workers: int = 0,
        seed: int | None = None,
    ):
        if not 0 <= image_cache_gb < float("inf"):
            raise SheetbendError(f"data.image_cache_gb is {image_cache_gb}; give a size in GB, or 0 for no cache")
        super().__init__(tasks, batch_size, eval_batch_size, batches_per_epoch, num_workers, seed)
        self.image_cache_gb = image_cache_gb
        self.image_transform = ImageTransform()
        self._opened: dict[str, SourceImages] = {}  # of the task that is being loaded

    @abstractmethod
    def parts(self, task: str) -> dict[str, Part]:
        """Return what the splits ``train``, ``val`` and ``test`` of one task are made of."""

    def attach(self, module: Any) -> None:
        """Take the model's image transform."""
        super().attach(module)
        self.image_transform = module.image_transform
        self.prepared_with(self.image_transform)

    def setup(self, stage: str | None = None) -> None:
        """Load every task, and decode the pictures that ``stage`` needs into the cache, those that fit into it."""
        super().setup(stage)
        for task in self.task_names:
            for split in _NEEDED.get(stage, ()):
                self.split(task, split).images.prepare()

    def load(self, task: str) -> dict[str, ImageSplit]:
        """Return the splits of ``task``; no picture is decoded yet."""
        self._opened.clear()
        parts = self.parts(task)
        splits: dict[str, ImageSplit] = {}
        for split in SPLITS:
            if split in splits:
                continue
            source = parts[split].source
            # Splits may be parts of one source, which is opened once.
            sharing = [name for name in SPLITS if parts[name].source is source]
            images = self.open_images(source, f"task {task}, {' and '.join(sharing)}")
            for name in sharing:
                rows = parts[name].rows
                splits[name] = ImageSplit(images, rows, source.labels[rows])
        self._opened.clear()
        return splits

    def open_images(self, source: ImageSource, owner: str) -> SourceImages:
        """Return the pictures of ``source`` as the model takes them; ``owner`` is what messages call its user."""
        if source.stamp not in self._opened:
            self._opened[source.stamp] = self._open(source, owner)
        return self._opened[source.stamp]

    def _open(self, source: ImageSource, owner: str) -> SourceImages:
        quiet = self.quiet or (self.trainer is not None and self.trainer.progress_bar_callback is None)
        cache = ImageCache(int(self.image_cache_gb * 1e9), quiet=quiet)
        return cache.open(source, self.image_transform, owner)


def relabelled(source: ImageSource, labels: Sequence[int], class_names: Sequence[str], owner: str) -> ImageSource:
    """Return ``source`` with the labels of a task.

    Args:
        source: pictures with labels of its own.
        labels: the task's label of each of the source's.
        class_names: the task's classes.
        owner: what messages call the source's user.

    Raises:
        SheetbendError: the source has a number that is none of its classes.
    """
    outside = np.flatnonzero(source.labels >= len(labels))
    if len(outside):
        row = int(outside[0])
        raise SheetbendError(
            f"{owner}: {source.where(row)}: its label {source.labels[row]} is outside the range (0 to "
            f"{len(labels) - 1}); give the class names of this data set"
        )
    return replace(source, labels=np.asarray(labels, np.int64)[source.labels], class_names=tuple(class_names))


def whole(sources: Mapping[str, ImageSource]) -> dict[str, Part]:
    """Return sources as parts: each all of its own."""
    return {split: Part(source, np.arange(len(source))) for split, source in sources.items()}
