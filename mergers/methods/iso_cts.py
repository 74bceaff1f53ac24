"""Common and task-specific directions with one flat spectrum."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from mergers.errors import SheetbendError
from mergers.functional.linalg import nearest_orthonormal, numerical_rank, svd_of_product
from mergers.methods.base import CUTOFF, SpectralMethod, from_factors, support, weighted_sum
from mergers.updates import Update


@dataclass(frozen=True)
class IsoCTS(SpectralMethod):
    """Iso-CTS: the sum's main directions, then each task's own, all with the same singular value.

    With r the rank of the sum of c_i delta_i, about common_fraction * r of its directions are kept; the others are
    replaced by n directions of each task, the largest of what its update has outside the kept left singular
    vectors. n is (r - common_fraction * r) / T, rounded, and the common ones make up r. Left and right vectors are
    brought to the nearest orthonormal ones, and every singular value becomes the mean of those of the directions
    chosen. Directions beyond the rank of the sum or of a task are never invented, which differs from the published
    code: it counts r = min(shape). Vectors are averaged.

    Paper: Marczak et al., No Task Left Behind: Isotropic Model Merging, ICML 2025 (arXiv 2502.04959).

    Attributes:
        common_fraction: Fraction of the directions that come from the sum, in [0, 1]; at 1 this is Iso-C.
    """

    needs_norms: ClassVar[bool] = True

    common_fraction: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.common_fraction <= 1:
            raise SheetbendError(f"IsoCTS common_fraction is {self.common_fraction}; give a fraction in [0, 1]")

    def merge_matrices(self, coordinates: Sequence[Update], coefficients: Sequence[float]) -> Update:
        """Return the merged matrix, of the rank of the sum."""
        tasks = [update.scaled(c) for update, c in zip(coordinates, coefficients, strict=True)]
        total = support(weighted_sum(tasks, [1.0] * len(tasks)))
        common, own = self._directions(len(total.s), len(tasks))
        shared = total.U[:, :common]
        U, s, Vh = [shared], [total.s[:common]], [total.Vh[:common]]
        for task in tasks if own else []:
            B, A = (factor.double() for factor in task.factors())
            left, values, right = svd_of_product(B - shared @ (shared.T @ B), A)
            # What is left of a task that the common directions hold is rounding: measure it by the task itself.
            rank = min(own, numerical_rank(values, CUTOFF * math.sqrt(task.squared_norm()), relative=False))
            U.append(left[:, :rank])
            s.append(values[:rank])
            Vh.append(right[:rank])
        spectrum = torch.cat(s)
        level = spectrum.mean() if len(spectrum) else 0.0
        left, right = nearest_orthonormal(torch.cat(U, dim=1)), nearest_orthonormal(torch.cat(Vh).T)
        return from_factors(left * level, right.T, coordinates)

    def _directions(self, rank: int, tasks: int) -> tuple[int, int]:
        """Return how many directions are common, and how many of each task's own; together ``rank``."""
        own = min(round((rank - int(rank * self.common_fraction)) / tasks), rank // tasks)
        return rank - own * tasks, own
