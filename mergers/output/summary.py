"""What came of a merge: numbers for the eye, and for the files beside the weights."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mergers.updates import Adapter

# The file of a merged folder that holds these numbers, and by which such a folder is known.
MERGE_FILE = "sheetbend_merge.json"


class ModuleNumbers(NamedTuple):
    """Squared Frobenius norms of one merged module.

    Attributes:
        rank: Of the saved factors; None where the update was added to a model.
        squared_norm: Of the merged update.
        truncation: Of what ``rank=`` left out.
        rounding: Of what the cast to the saved dtype changed.
    """

    rank: int | None
    squared_norm: float
    truncation: float
    rounding: float


@dataclass(frozen=True, repr=False)
class MergeSummary:
    """What a merge gave.

    Attributes:
        path: The folder that was written.
        merger: The merge in one line.
        settings: Rank, dtype and the like, as plain values.
        adapters: Facts of each adapter, in the order given: name, source, base model, modules, ranks, norm, hash.
        modules: Numbers of each module.
        heads: Tasks whose own heads were kept beside the merged weights.
        notes: What else the user should know.
        key: Hash of what the weights depend on; see `mergers.output.key`.
    """

    path: str
    merger: str
    settings: Mapping[str, Any]
    adapters: Sequence[Mapping[str, Any]]
    modules: Mapping[str, ModuleNumbers]
    heads: Sequence[str] = ()
    notes: Sequence[str] = field(default_factory=list)
    key: str | None = None

    def __repr__(self) -> str:
        ranks = f"ranks {self.ranks[0]} to {self.ranks[1]}" if self.ranks else "a full model"
        return (
            f"MergeSummary({self.path!r}, {len(self.modules)} modules, {ranks}, norm={self.norm:.4g}, "
            f"truncation_error={self.truncation_error:.4g}, rounding_error={self.rounding_error:.4g})"
        )

    @property
    def ranks(self) -> tuple[int, int] | None:
        """Smallest and largest rank of the saved factors; None for a full model."""
        ranks = [numbers.rank for numbers in self.modules.values() if numbers.rank is not None]
        return (min(ranks), max(ranks)) if ranks else None

    @property
    def norm(self) -> float:
        """Frobenius norm of the merged update over all modules."""
        return math.sqrt(sum(numbers.squared_norm for numbers in self.modules.values()))

    @property
    def truncation_error(self) -> float:
        """Norm of what ``rank=`` left out, relative to the whole."""
        return self._relative("truncation")

    @property
    def rounding_error(self) -> float:
        """Norm of what the cast to the saved dtype changed, relative to the whole."""
        return self._relative("rounding")

    def module_error(self, module: str, kind: str = "truncation") -> float:
        """Return the relative error of one module, by ``"truncation"`` or by ``"rounding"``."""
        numbers = self.modules[module]
        return math.sqrt(getattr(numbers, kind) / numbers.squared_norm) if numbers.squared_norm > 0 else 0.0

    def worst(self, count: int = 3) -> list[tuple[str, float]]:
        """Return the modules with the largest relative truncation error."""
        errors = [(module, self.module_error(module)) for module in self.modules]
        return sorted(errors, key=lambda item: -item[1])[:count]

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the path as plain values, for JSON."""
        return {
            "merger": self.merger,
            "key": self.key,
            "settings": dict(self.settings),
            "adapters": [dict(adapter) for adapter in self.adapters],
            "norm": self.norm,
            "truncation_error": self.truncation_error,
            "rounding_error": self.rounding_error,
            "heads": list(self.heads),
            "notes": list(self.notes),
            "modules": {
                module: {
                    "rank": numbers.rank,
                    "norm": math.sqrt(numbers.squared_norm),
                    "truncation_error": self.module_error(module),
                    "rounding_error": self.module_error(module, "rounding"),
                }
                for module, numbers in self.modules.items()
            },
        }

    def _relative(self, kind: str) -> float:
        total = sum(getattr(numbers, kind) for numbers in self.modules.values())
        return math.sqrt(total) / self.norm if self.norm > 0 else 0.0


def truncation_notes(modules: Mapping[str, ModuleNumbers]) -> list[str]:
    """Return what the user should know where little of the merged update is left."""
    lost, whole = (
        sum(getattr(numbers, kind) for numbers in modules.values()) for kind in ("truncation", "squared_norm")
    )
    if lost <= whole / 4:
        return []
    return [
        f"the rank cuts off {math.sqrt(lost / whole):.0%} of the merged update; a larger rank, an aligned space "
        "(knots, core) or a full model keeps more"
    ]


def adapter_facts(adapter: Adapter) -> dict[str, Any]:
    """Return what identifies an adapter, as plain values."""
    ranks = sorted({update.rank for update in adapter.values()})
    return {
        "name": adapter.name,
        "source": adapter.metadata.get("path"),
        "base_model": adapter.base_model,
        "modules": len(adapter),
        "ranks": [ranks[0], ranks[-1]],
        "dtype": adapter.metadata.get("dtype"),
        "content_hash": adapter.content_hash(),
    }
