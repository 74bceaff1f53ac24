"""What changes the merged coordinates after the method; a class listed here is found by its name."""

from mergers.finishes.iso import Iso
from mergers.finishes.truncate import Truncate

__all__ = ["Iso", "Truncate"]
