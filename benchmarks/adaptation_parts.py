"""Random updates as directions: what `adaptation_ways` merges."""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.adaptation_cases import Case, Setting, Shape
from mergers.adaptive import Decomposition
from mergers.adaptive.adarank import FIRST_LOGIT
from mergers.adaptive.parts import MaskedPart
from mergers.functional.masked import Directions
from mergers.seeding import derive_generator
from mergers.spaces.base import Encoded
from mergers.updates import DenseUpdate, LowRankUpdate, Update


def random_weights(case: Case, setting: Setting) -> dict[str, Tensor]:
    """Return what stands for the model's own weights where nothing goes through the model."""
    return {
        name: torch.randn(shape, generator=derive_generator(name, "base")) / shape[1] ** 0.5
        for name, shape in setting.shapes(case).items()
    }


def lora_updates(case: Case, setting: Setting, name: str, shape: Shape) -> list[Update]:
    """Return the updates of all tasks to one weight, with values as in `geometries.write_adapter`."""
    updates: list[Update] = []
    for task in range(setting.tasks):
        generator = derive_generator(name, task)
        A = torch.randn(case.rank, shape[1], generator=generator) / shape[1] ** 0.5
        updates.append(LowRankUpdate(A=A, B=torch.randn(shape[0], case.rank, generator=generator) * 0.01))
    return updates


@lru_cache(maxsize=2)
def _orthonormal(size: int, count: int, *seed: object) -> Tensor:
    return torch.linalg.qr(torch.randn(size, count, generator=derive_generator(*seed)))[0]


def full_rank_part(case: Case, setting: Setting, name: str, shape: Shape) -> MaskedPart:
    """Return min(out, in) orthonormal directions of each task under a falling spectrum, and for CART a mean.

    The QR of a random matrix, whose rows are shifted from layer to layer and task to task, stands for the SVD: 8 times
    72 SVDs would take minutes and are not what is measured.
    """
    _, _, _, layer, projection = name.split(".", 4)
    count = min(shape)
    spectrum = 0.1 / (1 + torch.arange(count)) ** 0.5
    B, A = (torch.empty(setting.tasks * count, size) for size in shape)
    for task in range(setting.tasks):
        shift, rows = int(layer) * setting.tasks + task, slice(task * count, (task + 1) * count)
        B[rows] = (_orthonormal(shape[0], count, projection, "U").roll(shift, 0) * spectrum).T
        A[rows] = _orthonormal(shape[1], count, projection, "V").roll(shift, 0).T
    tasks = torch.arange(setting.tasks).repeat_interleave(count)
    mean = torch.randn(shape, generator=derive_generator(name, "mean")) * 1e-3 if case.start == "cart" else None
    return MaskedPart(Directions(B, A, tasks), (count,) * setting.tasks, False, mean)


def parts(case: Case, setting: Setting) -> Iterator[tuple[str, MaskedPart]]:
    """Yield each weight's name and what is learned of it."""
    for name, shape in setting.shapes(case).items():
        if case.rank is None:
            yield name, full_rank_part(case, setting, name, shape)
        else:
            encoded = Decomposition(case.start, case.space).encode(lora_updates(case, setting, name, shape))
            yield name, MaskedPart.of(encoded, setting.tasks, low_rank=True)
    _orthonormal.cache_clear()


def first_logits(case: Case, part: MaskedPart) -> Tensor:
    """Return the logits that one weight's masks begin with, as `AdaptiveMerge.first_logits` does."""
    on = [torch.arange(count) < max(1, int(case.ratio * count)) for count in part.counts]
    return torch.where(torch.cat(on), FIRST_LOGIT, -FIRST_LOGIT)


def written_out(part: MaskedPart, task: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (out, d), s (d,) and V^T (d, in) of one task, d = min(out, in), zeros at the end of s."""
    own = part.directions.tasks == task
    B, A = part.directions.B[own].T, part.directions.A[own]
    B = B if part.left is None else part.left @ B
    A = A if part.right is None else A @ part.right
    s = B.norm(dim=0)
    size, missing = min(B.shape[0], A.shape[1]), min(B.shape[0], A.shape[1]) - len(s)
    assert missing >= 0, f"{len(s)} directions of one task in a weight of rank {size}"
    U = pad(B / s.clamp_min(torch.finfo(s.dtype).tiny), (0, missing), value=B.shape[0] ** -0.5)
    Vh = pad(A, (0, 0, 0, missing), value=A.shape[1] ** -0.5)
    return U.contiguous(), pad(s, (0, missing)), Vh.contiguous()


def written_out_origin(part: MaskedPart, base: Tensor) -> Tensor:
    """Return the base weight, and the mean where that is the origin, (out, in)."""
    if part.mean is None:
        return base
    return base + Encoded([], part.left, part.right).decode(DenseUpdate(part.mean)).dense()
