"""The mean of the updates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mergers.methods.base import LinearMethod


@dataclass(frozen=True)
class Mean(LinearMethod):
    """1/T sum_i c_i delta_i, the average of the fine-tuned models.

    Paper: Wortsman et al., Model soups, ICML 2022 (arXiv 2203.05482).
    """

    def weights(self, coefficients: Sequence[float], survey: Any = None) -> list[float]:
        """Return c_i / T."""
        return [coefficient / len(coefficients) for coefficient in coefficients]
