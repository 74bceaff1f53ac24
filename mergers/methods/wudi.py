"""The update that disturbs the tasks least."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from mergers.errors import SheetbendError
from mergers.functional.linalg import numerical_rank
from mergers.functional.optimize import adam
from mergers.methods.base import CUTOFF, SpectralMethod, from_factors, support, weighted_sum
from mergers.updates import DenseUpdate, Update

Solver = Literal["adam", "exact"]


@dataclass(frozen=True)
class Wudi(SpectralMethod):
    """WUDI: the matrix that minimises sum_i ||(merged - c_i delta_i) delta_i^T||^2 / ||delta_i||^2.

    The rows of delta_i stand for the inputs that task i was tuned on, and there the merged update should act like
    c_i delta_i: coefficients scale the targets, not the inputs, so equal ones scale the minimiser. Zero updates
    take no part. Vectors are averaged.

    "adam" is the paper's way: a fixed number of steps of Adam from sum_i c_i delta_i. A step moves an entry by about
    ``lr`` whatever the size of the updates, so the result depends on their size and on the basis, and has no
    low rank. "exact" is where such steps lead: the minimiser itself, without any part on which no task depends; it
    is of rank sum(r_i) and the same in all spaces.

    Paper: Cheng et al., Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via Task
    Vectors, ICML 2025 (arXiv 2503.08099).

    Attributes:
        solver: "adam" or "exact".
        steps: Of Adam.
        lr: Of Adam.
    """

    needs_norms: ClassVar[bool] = True

    solver: Solver = "adam"
    steps: int = 300
    lr: float = 1e-5

    def __post_init__(self) -> None:
        if self.solver not in get_args(Solver):
            raise SheetbendError(f"Wudi solver is {self.solver!r}; known: {', '.join(get_args(Solver))}")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 0:
            raise SheetbendError(f"Wudi steps is {self.steps!r}; give a whole number from 0 on")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise SheetbendError(f"Wudi lr is {self.lr}; give a number above 0")

    @property
    def entrywise(self) -> bool:
        """Whether it takes Adam's steps, which leave no low rank."""
        return self.solver == "adam"

    def working_tensors(self, tasks: int) -> int:
        """Return what Adam holds, and the decompositions before it where these are of dense updates."""
        return 7

    def merge_matrices(self, coordinates: Sequence[Update], coefficients: Sequence[float]) -> Update:
        """Return the merged matrix: low-rank where the coordinates are and the solver is "exact"."""
        inputs, targets = _least_squares(coordinates, coefficients)
        if self.solver == "exact":
            P, s, Qh = torch.linalg.svd(inputs, full_matrices=False)
            rank = numerical_rank(s, CUTOFF)
            B = targets @ (Qh[:rank].T / s[:rank])
            return from_factors(B, P[:, :rank].T, coordinates)
        start = weighted_sum(coordinates, coefficients).dense()
        return DenseUpdate(adam(start, _gradient(inputs.float(), targets.float()), self.steps, self.lr))


def _least_squares(coordinates: Sequence[Update], coefficients: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return M (in, R) and Y (out, R) float64 for which the objective is ||merged @ M - Y||^2.

    With delta_i = U_i diag(s_i) V_i^T, the i-th term is ||(merged - c_i delta_i) V_i diag(s_i)||^2 / ||s_i||^2.
    """
    inputs, targets = [], []
    for update, coefficient in zip(coordinates, coefficients, strict=True):
        U, s, Vh = support(update)
        norm = s.norm()
        inputs.append(Vh.T * (s / norm))
        targets.append(U * (coefficient * s.square() / norm))
    return torch.cat(inputs, dim=1), torch.cat(targets, dim=1)


def _gradient(inputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the gradient of ||merged @ M - Y||^2 as a function of merged, at the cost of the smaller products."""
    columns, rank = inputs.shape
    if 2 * rank < columns:
        return lambda merged: torch.addmm(targets, merged, inputs, beta=-1) @ inputs.T * 2
    gram, constant = inputs @ inputs.T, targets @ inputs.T
    return lambda merged: torch.addmm(constant, merged, gram, beta=-1) * 2
