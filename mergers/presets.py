"""Merges by name: a method with the steps that its paper puts around it, in a space."""

from dataclasses import dataclass, field, replace
from typing import Any

from mergers.errors import SheetbendError, did_you_mean
from mergers.finishes import Iso
from mergers.finishes.base import Finish
from mergers.merger import Merger
from mergers.methods import TSV, Cart, IsoCTS, Mean, MetaGPT, TallMasks, TaskArithmetic, Ties, Wudi
from mergers.methods.base import Method
from mergers.spaces import Core, Full, KnOTS
from mergers.transforms import Breadcrumbs, Dare, Della, Star
from mergers.transforms.base import Transform


@dataclass(frozen=True)
class Recipe:
    """A merge but for its space.

    Attributes:
        what: What it does, in a few words.
        paper: Where it comes from.
        method: The method.
        transforms: The steps before it.
        finish: The step after it, or None.
        aligned: Whether a space other than Full makes a difference, so that there is a preset for each.
    """

    what: str
    paper: str
    method: Method
    transforms: list[Transform] = field(default_factory=list)
    finish: Finish | None = None
    aligned: bool = True


_TIES, _ISO, _TSV, _CART = "arXiv 2306.01708", "arXiv 2502.04959", "arXiv 2412.00081", "arXiv 2412.12153"
_DARE, _CRUMBS, _DELLA = "arXiv 2311.03099", "arXiv 2312.06795", "arXiv 2406.11617"

RECIPES: dict[str, Recipe] = {
    "mean": Recipe("average", "arXiv 2203.05482", Mean(), aligned=False),
    "task-arithmetic": Recipe("sum", "arXiv 2212.04089", TaskArithmetic(), aligned=False),
    "metagpt": Recipe("sum, weighted by squared norms", "arXiv 2406.11385", MetaGPT(), aligned=False),
    "star": Recipe("truncate and rescale spectra, average", "arXiv 2502.10339", Mean(), [Star()], aligned=False),
    "ties": Recipe("keep the largest 20 %, elect signs, average what agrees", _TIES, Ties()),
    "ties-iso": Recipe("TIES, then one flat spectrum", f"{_TIES}, {_ISO}", Ties(trim="local"), finish=Iso()),
    "dare": Recipe("drop entries at random and rescale, sum", _DARE, TaskArithmetic(), [Dare(0.2)]),
    "dare-ties": Recipe("drop entries at random, elect signs", f"{_DARE}, {_TIES}", Ties(density=1.0), [Dare(0.2)]),
    "della": Recipe("drop mostly small entries at random, sum", _DELLA, TaskArithmetic(), [Della(0.3)]),
    "della-ties": Recipe("drop mostly small entries at random, elect signs", _DELLA, Ties(density=1.0), [Della(0.3)]),
    "breadcrumbs": Recipe("drop the smallest and the largest entries, sum", _CRUMBS, TaskArithmetic(), [Breadcrumbs()]),
    "breadcrumbs-ties": Recipe(
        "drop the smallest and the largest entries, elect signs",
        f"{_CRUMBS}, {_TIES}",
        Ties(density=1.0),
        [Breadcrumbs()],
    ),
    "tall-masks": Recipe("sum at the entries that two tasks want", "arXiv 2405.07813", TallMasks()),
    "tsv": Recipe("main singular vectors of each task, made orthonormal", _TSV, TSV()),
    "tsv-iso": Recipe("TSV, then one flat spectrum", f"{_TSV}, {_ISO}", TSV(), finish=Iso()),
    "iso-c": Recipe("sum, then one flat spectrum", _ISO, TaskArithmetic(), finish=Iso(), aligned=False),
    "iso-cts": Recipe("common and task-specific directions, one flat spectrum", _ISO, IsoCTS(), aligned=False),
    "cart": Recipe("average, and main directions of what differs from it", _CART, Cart()),
    "cart-iso": Recipe("CART, then one flat spectrum", f"{_CART}, {_ISO}", Cart(), finish=Iso()),
    "wudi": Recipe("steps of Adam towards least interference", "arXiv 2503.08099", Wudi()),
    "wudi-exact": Recipe("least interference, solved exactly", "arXiv 2503.08099", Wudi("exact"), aligned=False),
}

_SPACES = {
    "": (Full(), ""),
    "knots-": (KnOTS(), " in the common basis of all outputs (KnOTS, arXiv 2410.19735)"),
    "core-": (Core(), " in common bases of inputs and outputs (Core Space, arXiv 2509.17786)"),
}

_NAMES = [(prefix, name) for prefix in _SPACES for name, recipe in RECIPES.items() if prefix == "" or recipe.aligned]

#: Every preset by its name: that of a recipe, with the space before it.
PRESETS: dict[str, Merger] = {
    prefix + name: Merger(
        _SPACES[prefix][0], RECIPES[name].method, RECIPES[name].transforms, finish=RECIPES[name].finish
    )
    for prefix, name in _NAMES
}

#: What each preset does, in one line.
DESCRIPTIONS: dict[str, str] = {
    prefix + name: f"{RECIPES[name].what}{_SPACES[prefix][1]} ({RECIPES[name].paper})" for prefix, name in _NAMES
}


def preset(name: str, **changes: Any) -> Merger:
    """Return the merge of that name.

    Coefficients are 1 unless given: papers search theirs on validation data.

    Args:
        name: One of `PRESETS`.
        **changes: Fields of `Merger` that differ from the preset's.

    >>> str(preset("knots-ties", coefficients=0.6))
    'Ties(density=0.2), in KnOTS space, coefficient 0.6'

    Raises:
        SheetbendError: There is no preset of that name.
    """
    if name not in PRESETS:
        close = did_you_mean(name, list(PRESETS))
        raise SheetbendError(
            f"unknown preset {name!r}{close}; known presets: {', '.join(RECIPES)}; those whose result depends on the "
            "space also with knots- or core- before the name"
        )
    return replace(PRESETS[name], **changes)
