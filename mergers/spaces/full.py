"""The space of the updates themselves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mergers.spaces.base import Encoded, Space
from mergers.updates import Update


@dataclass(frozen=True)
class Full(Space):
    """The update itself: coordinates are deltas (out, in), factored until a method needs their entries."""

    costly: ClassVar[bool] = False

    def encode(self, updates: Sequence[Update]) -> Encoded:
        """Return the updates as they are."""
        return Encoded(list(updates))

    def low_rank(self, dense_coordinates: bool) -> bool:
        """Return whether the coordinates are."""
        return not dense_coordinates
