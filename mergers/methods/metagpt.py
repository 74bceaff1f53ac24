"""Coefficients from norms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mergers.methods.base import EachModule, LinearMethod
from mergers.updates import Update


@dataclass(frozen=True)
class MetaGPT(LinearMethod):
    """sum_i c_i lambda_i delta_i with lambda_i = ||delta_i||^2 / sum_k ||delta_k||^2.

    Norms are over all modules together, so that a task has one lambda. The lambdas sum to 1; where all updates are zero
    they are 1/T.

    Paper: Zhou et al., MetaGPT: Merging Large Language Models Using Model Exclusive Task Arithmetic, EMNLP 2024
    (arXiv 2406.11385).
    """

    needs_norms: ClassVar[bool] = True

    def survey(self, each_module: EachModule) -> list[float]:
        """Return lambda of each task."""

        def squared_norms(coordinates: Sequence[Update]) -> list[float]:
            return [update.squared_norm() for update in coordinates]

        # fsum is exact, so that the order of the modules does not matter.
        norms = [math.fsum(task) for task in zip(*each_module(squared_norms), strict=True)]
        total = sum(norms)
        return [norm / total if total > 0 else 1 / len(norms) for norm in norms]

    def weights(self, coefficients: Sequence[float], survey: list[float]) -> list[float]:
        """Return c_i lambda_i."""
        return [coefficient * share for coefficient, share in zip(coefficients, survey, strict=True)]
