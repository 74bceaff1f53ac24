"""Low-rank parts of what sets tasks apart from their mean."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from mergers.errors import SheetbendError
from mergers.methods.base import SpectralMethod, common_frame, from_core
from mergers.updates import Update

Rounding = Literal["up", "down"]


@dataclass(frozen=True)
class Cart(SpectralMethod):
    """CART: 1/T sum_i c_i delta_i + scaling * sum_i c_i [delta_i - mean]_k.

    [.]_k is the best approximation of rank k, and mean = 1/T sum_i delta_i. k is rank_ratio * min(shape), rounded,
    and at least one; the shape is that of the coordinates, so k differs between spaces. In Full, low-rank updates
    often have fewer than k directions, and then the parts of equal coefficients cancel and leave the mean: Core is the
    space for them. Equal coefficients scale the whole result. Low-rank updates give a result of rank sum(r_i).
    Vectors are averaged.

    Paper: Choi et al., Revisiting Weight Averaging for Model Merging (arXiv 2412.12153).

    Attributes:
        rank_ratio: Fraction of the directions that is kept, in (0, 1].
        scaling: Factor of the sum of low-rank parts.
        rounding: Of k: "up", as in the code of Core Space, or "down", as in that of AdaRank.
    """

    rank_ratio: float = 0.16
    scaling: float = 1.0
    rounding: Rounding = "up"

    def __post_init__(self) -> None:
        if not 0 < self.rank_ratio <= 1:
            raise SheetbendError(f"Cart rank_ratio is {self.rank_ratio}; give a fraction in (0, 1]")
        if not math.isfinite(self.scaling):
            raise SheetbendError(f"Cart scaling is {self.scaling}; give a finite number")
        if self.rounding not in get_args(Rounding):
            raise SheetbendError(f"Cart rounding is {self.rounding!r}; known: {', '.join(get_args(Rounding))}")

    def merge_matrices(self, coordinates: Sequence[Update], coefficients: Sequence[float]) -> Update:
        """Return the merged matrix, of rank sum(r_i) at most."""
        directions = self.rank_ratio * min(coordinates[0].shape)
        kept = max(1, math.ceil(directions) if self.rounding == "up" else int(directions))
        frame = common_frame(coordinates)
        mean = sum(frame.cores) / len(frame.cores)
        merged = torch.zeros_like(mean)
        for core, coefficient in zip(frame.cores, coefficients, strict=True):
            part = core - mean
            if kept < min(part.shape):
                U, s, Vh = torch.linalg.svd(part, full_matrices=False)
                part = U[:, :kept] * s[:kept] @ Vh[:kept]
            merged += coefficient * (core / len(frame.cores) + self.scaling * part)
        return from_core(merged, frame, coordinates)
