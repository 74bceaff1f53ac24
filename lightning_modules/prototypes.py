"""Class vectors from training images: heads for encoders without a text tower.

A prototype is the mean of the features of a class's images (Snell et al., 2017, arXiv 1703.05175), here of their unit
vectors, and made a unit vector again, so that it takes the place of a class vector from prompts.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from datamodules.label_space import JointLabels
from datamodules.tasks import Split, Task
from lightning_modules.vector_cache import cached_vectors
from mergers import SheetbendError
from mergers.seeding import derive_generator


def chosen_examples(labels: Tensor, classes: int, most: int, seed: str) -> list[list[int]]:
    """Return which examples stand for each class: all, or ``most`` of them drawn without replacement.

    Args:
        labels: (N,) int64.
        classes: C.
        most: the largest number of examples a class.
        seed: what the draw depends on, together with the class.

    Returns:
        For each class, ascending indices into ``labels``.

    >>> chosen_examples(torch.tensor([1, 0, 1, 1]), classes=3, most=5, seed="")
    [[1], [0, 2, 3], []]
    """
    chosen = []
    for label in range(classes):
        found = (labels == label).nonzero().flatten()
        if len(found) > most:
            generator = derive_generator("prototypes", seed, label)
            found = found[torch.randperm(len(found), generator=generator)[:most]].sort().values
        chosen.append(found.tolist())
    return chosen


def prototypes(split: Split, chosen: Sequence[Sequence[int]], embed: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """Return one unit vector a class, zeros for a class without examples.

    Args:
        split: the examples.
        chosen: for each of C classes, indices into ``split``.
        embed: maps images (n, 3, H, W) uint8 to unit vectors (n, d).
        size: images embedded at a time.

    Returns:
        (C, d) float32.
    """
    order = sorted(index for group in chosen for index in group)  # on disk neighbours are cheap
    owner = {index: label for label, group in enumerate(chosen) for index in group}
    sums: Tensor | None = None
    for start in range(0, len(order), size):
        indices = order[start : start + size]
        features = embed(split.batch(indices)[0]).cpu().double()
        sums = features.new_zeros(len(chosen), features.shape[1]) if sums is None else sums
        sums.index_add_(0, torch.tensor([owner[index] for index in indices]), features)
    return normalize(sums, dim=-1).float()


def cached_prototypes(
    task: Task,
    split: Split,
    fingerprint: str,
    embed: Callable[[Tensor], Tensor],
    facts: Sequence[str],
    most: int,
    size: int = 256,
) -> Tensor:
    """Return `prototypes` of a task's training images, from disk where they were made before.

    Which images are drawn depends on the split and on ``most`` alone, so that all runs on one split have one head.

    Args:
        task: has the classes; those in ``absent`` have no examples.
        split: its training examples.
        fingerprint: of the split.
        embed: as for `prototypes`.
        facts: what else the features depend on: the model, its dtype, the image transform.
        most: the largest number of images a class.
        size: images embedded at a time.

    Raises:
        SheetbendError: a class has no training image.
    """
    chosen = chosen_examples(split.labels, len(task.class_names), most, fingerprint)
    for name, group in zip(task.class_names, chosen, strict=True):
        if not group and name not in task.absent:
            raise SheetbendError(
                f"task {task.name}: class {name!r} has no training image, and so no prototype; add images, name the "
                "class in the task's absent, or give a model with a text tower and prompts"
            )
    return cached_vectors(
        ["prototypes", *facts, fingerprint, most, len(chosen)], lambda: prototypes(split, chosen, embed, size)
    )


def joint_prototypes(joint: JointLabels, vectors: Mapping[str, Tensor]) -> Tensor:
    """Return the prototype of each joint class; one that several tasks share is the mean of theirs, normalised.

    Each task counts once, however many images it has.

    Args:
        joint: the label space.
        vectors: by task, (C, d) unit vectors, zeros where a task lacks the class.

    Returns:
        (J, d) float32.
    """
    first = next(iter(vectors.values()))
    sums = first.new_zeros(len(joint), first.shape[1])
    for task, columns in joint.columns.items():
        sums.index_add_(0, torch.tensor(columns, device=sums.device), vectors[task])
    return normalize(sums, dim=-1)
