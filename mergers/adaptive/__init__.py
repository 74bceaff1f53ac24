"""Merges whose masks and coefficients are learned."""

from mergers.adaptive.adarank import AdaptiveMerge, AdaRank
from mergers.adaptive.decompose import Decomposition

__all__ = ["AdaRank", "AdaptiveMerge", "Decomposition"]
