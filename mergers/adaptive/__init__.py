"""Merges whose masks and coefficients are learned."""

from mergers.adaptive.adarank import AdaptiveMerge, AdaRank
from mergers.adaptive.decompose import Decomposition
from mergers.adaptive.kept import KeptRanks

__all__ = ["AdaRank", "AdaptiveMerge", "Decomposition", "KeptRanks"]
