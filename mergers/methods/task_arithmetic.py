"""The sum of the updates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mergers.methods.base import LinearMethod


@dataclass(frozen=True)
class TaskArithmetic(LinearMethod):
    """sum_i c_i delta_i.

    Paper: Ilharco et al., Editing models with task arithmetic, ICLR 2023 (arXiv 2212.04089).
    """

    def weights(self, coefficients: Sequence[float], survey: Any = None) -> list[float]:
        """Return c_i."""
        return list(coefficients)
