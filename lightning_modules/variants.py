"""Named sets of weights that the evaluation loop runs every batch through."""

from dataclasses import dataclass, field

from torch import Tensor

PRETRAINED = "pretrained"
FINETUNED = "finetuned"


@dataclass(frozen=True)
class Variant:
    """One set of weights under test.

    Attributes:
        description: one line for the report: what the weights are and with which settings they were made.
        weights: tensors that replace those of the base model, by parameter name; empty: the base itself; None: they
            have been let go, and only the description is left.
        own_adapter: each batch runs through the adapter of its own task, and ``weights`` is not used.
    """

    description: str
    weights: dict[str, Tensor] | None = field(default_factory=dict, repr=False)
    own_adapter: bool = False


def pretrained() -> Variant:
    """Return the base model as it came."""
    return Variant("the base model, without adapters")


def finetuned() -> Variant:
    """Return the adapters before merging, each on its own task."""
    return Variant("each task through its own adapter", own_adapter=True)
