"""AdaRank: which singular directions of which task to merge, and how much of each task, as learned numbers."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from mergers.adapters.checks import align, check_same_base
from mergers.adaptive.decompose import Decomposition, SpaceName, Start
from mergers.adaptive.kept import KeptRanks
from mergers.adaptive.parts import MaskedPart, OriginPart, Part, WholePart
from mergers.errors import SheetbendError
from mergers.merged import MergedAdapter
from mergers.methods.base import are_low_rank, weighted_sum
from mergers.parallel import map_modules
from mergers.spaces.base import Encoded
from mergers.updates import Adapter, Update

Learn = Literal["masks", "coefficients", "both"]
Encode = Callable[[Sequence[Update]], Encoded]

# No coefficient or temperature beyond this, or its inverse, leaves float32 room for what is computed.
_LEAST = 1e-6

# Mask logits of directions that begin on, and minus those of the others.
FIRST_LOGIT = 0.1

# Attention and MLP weights, by the names that they have in open_clip and in transformers' CLIP, ViT, BERT, GPT-2, T5
# and Llama.
MASKED = r"(?i)attn|attention|mlp|intermediate|output\.dense|\.fc[12]$|DenseReluDense"

# Coefficient and initial rank ratio of each start; the paper's for eight tasks on ViT-B/32. TSV-M's sum is as it is.
_DEFAULTS: dict[str, tuple[float, float]] = {"task_arithmetic": (0.3, 1.0), "cart": (2.3, 0.16), "tsv": (1.0, 1.0)}


@dataclass(frozen=True)
class AdaRank:
    """origin + sum_i c_i sum_j 1[m_ij > 0] s_ij u_ij v_ij^T in every matrix, with c and m to be learned.

    Each task has a coefficient c_i in every weight, and a mask logit m_ij on each of its singular directions in
    every attention and MLP matrix, or wherever updates are low-rank. Where nothing is masked, whole updates are summed.
    A mask's gradient passes straight through; see `mergers.functional.masked.masked_sum`.

    Paper: Lee et al., AdaRank: Adaptive Rank Pruning for Enhanced Model Merging (arXiv 2503.22178). With ``learn:
    coefficients`` and ``start: task_arithmetic`` it is AdaMerging, layer by layer (Yang et al., ICLR 2024, arXiv
    2310.02575).

    Attributes:
        start: What the merge is before anything is learned. ``task_arithmetic``: a sum of the tasks' updates.
            ``cart``: the mean of the updates, and a sum of the largest directions of what sets each task apart from
            it. ``tsv``: the sum of each task's largest directions, made orthonormal over all tasks (TSV-M).
        space: ``full``, or ``knots``, in which the tasks share left singular vectors and each has a mask on them;
            for LoRA adapters.
        coefficient: What all c_i begin with; none: 0.3 for task_arithmetic, 2.3 for cart, 1 for tsv. What has no
            masks begins as the sum of the updates, times the coefficient, for task_arithmetic; as their mean for cart;
            as their mean, times it, for tsv.
        rank_ratio: Share of each task's directions whose mask begins on, the largest first, at least one; none:
            0.16 for cart, else 1. The directions of a full-rank update are min(out, in); of a LoRA update of rank r
            they are r, and those of cart, or in KnOTS space, as many as all updates together have.
        learn: The masks, the coefficients, or both.
        temperature: Of the sigmoid through which the masks' gradient passes; the logits begin at 0.1 and -0.1.
        masked: Regular expression that finds the names of dense updates whose directions get masks; low-rank ones
            always do.
        leave_out: Regular expression that finds the names of modules in which nothing is learned, such as ``embed`` for
            the token embeddings of a language model. They keep the base model's weights; with ``cart``, their mean.

    >>> str(AdaRank("cart", learn="masks"))
    'AdaRank(cart), masks learned'
    """

    start: Start = "task_arithmetic"
    space: SpaceName = "full"
    coefficient: float | None = None
    rank_ratio: float | None = None
    learn: Learn = "both"
    temperature: float = 10.0
    masked: str = MASKED
    leave_out: str | None = None

    def __post_init__(self) -> None:
        for field, choices in (("start", Start), ("space", SpaceName), ("learn", Learn)):
            if getattr(self, field) not in get_args(choices):
                raise SheetbendError(
                    f"AdaRank {field} is {getattr(self, field)!r}; known: {', '.join(get_args(choices))}"
                )
        if self.start == "tsv" and self.space == "knots":
            raise SheetbendError("AdaRank start tsv makes directions orthonormal itself; use space full with it")
        if self.rank_ratio is not None and not 0 < self.rank_ratio <= 1:
            raise SheetbendError(f"AdaRank rank_ratio is {self.rank_ratio}; give a fraction in (0, 1]")
        if not _LEAST <= self.temperature <= 1 / _LEAST:
            raise SheetbendError(f"AdaRank temperature is {self.temperature}; give one from {_LEAST} to {1 / _LEAST:g}")
        if self.coefficient is not None and not abs(self.coefficient) <= 1 / _LEAST:
            raise SheetbendError(f"AdaRank coefficient is {self.coefficient}; give one of at most {1 / _LEAST:g}")
        for field in ("masked", "leave_out"):
            try:
                re.compile(getattr(self, field) or "")
            except re.error as error:
                raise SheetbendError(
                    f"AdaRank {field} {getattr(self, field)!r} is no regular expression: {error}; mend it"
                ) from None

    def __str__(self) -> str:
        """Say in one line what is learned, on which start."""
        what = {"masks": "masks", "coefficients": "coefficients", "both": "masks and coefficients"}[self.learn]
        given = [self.start, *(["in KnOTS space"] if self.space == "knots" else [])]
        for field in ("coefficient", "rank_ratio"):
            if getattr(self, field) is not None:
                given.append(f"{field}={getattr(self, field):g}")
        layerwise = self.learn == "coefficients" and self.start == "task_arithmetic"
        return f"{'AdaMerging' if layerwise else 'AdaRank'}({', '.join(given)}), {what} learned"

    @property
    def first_coefficient(self) -> float:
        """What the coefficients of matrices with masks begin with."""
        return _DEFAULTS[self.start][0] if self.coefficient is None else self.coefficient

    @property
    def first_ratio(self) -> float:
        """The share of the directions whose masks begin on."""
        return _DEFAULTS[self.start][1] if self.rank_ratio is None else self.rank_ratio

    def prepare(self, adapters: Sequence[Adapter], encode: Encode | None = None) -> "AdaptiveMerge":
        """Decompose the updates of ``adapters``.

        Args:
            adapters: One a task, of one base model.
            encode: Takes the place of ``decomposition.encode``, such as what `AlignmentCache.encoder` returns.

        Raises:
            SheetbendError: The adapters do not fit together, or are not what the space takes.
        """
        adapters = align(adapters)
        check_same_base(adapters)
        left_out = [name for name in adapters[0] if self.leave_out and re.search(self.leave_out, name)]
        if len(left_out) == len(adapters[0]):
            raise SheetbendError(f"AdaRank leave_out {self.leave_out!r} leaves nothing to merge; make it narrower")
        modules = [name for name in adapters[0] if self.start == "cart" or name not in left_out]
        encode = encode or self.decomposition.encode

        def part(module: str) -> Part:
            updates = [adapter[module].load() for adapter in adapters]
            low_rank = are_low_rank(updates)
            if module in left_out:
                return OriginPart(weighted_sum(updates, [1 / len(updates)] * len(updates)), len(updates))
            if len(updates[0].shape) != 2 or not (low_rank or re.search(self.masked, module)):
                return WholePart.of(updates, around_mean=self.start == "cart")
            if self.space == "knots" and not low_rank:
                raise SheetbendError(
                    f"AdaRank space knots is for LoRA adapters, but {module} has a full-rank update; use space full"
                )
            return MaskedPart.of(encode(updates), len(updates), low_rank)

        parts = dict(zip(modules, map_modules(part, modules), strict=True))
        if self.learn != "coefficients" and not any(isinstance(one, MaskedPart) for one in parts.values()):
            raise SheetbendError(
                f"AdaRank masked {self.masked!r} finds no matrix whose directions could have masks; mend it, or give "
                "learn coefficients"
            )
        return AdaptiveMerge(self, adapters, parts)

    @property
    def decomposition(self) -> Decomposition:
        """How updates are written as directions."""
        return Decomposition(self.start, self.space)

    def require_low_rank(self) -> None:
        """Do nothing: learned merges of low-rank adapters are low-rank."""

    @property
    def coefficients(self) -> str:
        """What a summary says of the coefficients."""
        return "learned" if self.learn != "masks" else f"{self.first_coefficient:g}"


@dataclass(frozen=True, eq=False)
class AdaptiveMerge:
    """The weights of one model that depend on mask logits and coefficients.

    Mask logits of all modules and tasks stand in one vector, in the order of ``parts``, then of the tasks, then of the
    singular values. Coefficients are (M, T), one a module and task.

    Attributes:
        settings: How it was made.
        adapters: Of what.
        parts: By module name.
    """

    settings: AdaRank
    adapters: list[Adapter]
    parts: dict[str, Part]

    @cached_property
    def sizes(self) -> list[int]:
        """How many mask logits each module has."""
        return [sum(part.counts) for part in self.parts.values()]

    def first_logits(self) -> Tensor:
        """Return the mask logits to begin with, (sum of ``sizes``,)."""
        ratio = self.settings.first_ratio
        counts = [count for part in self.parts.values() for count in part.counts if count]
        runs = [torch.arange(count) < max(1, int(ratio * count)) for count in counts]
        on = torch.cat(runs) if runs else torch.zeros(0, dtype=torch.bool)
        return torch.where(on, FIRST_LOGIT, -FIRST_LOGIT)

    def first_coefficients(self) -> Tensor:
        """Return the coefficients to begin with, (M, T)."""
        tasks = len(self.adapters)
        # TSV-M averages what has no directions; without a mean to start from, so does it here.
        whole = 1 / tasks if self.settings.start == "tsv" else 1.0
        factors = [whole if isinstance(part, WholePart) else 1.0 for part in self.parts.values()]
        return self.settings.first_coefficient * torch.tensor(factors)[:, None].repeat(1, tasks)

    def kept(self, logits: Tensor) -> KeptRanks:
        """Return how many directions of each task are on in each module that has masks."""
        modules, kept, directions = [], [], []
        for (module, part), own in zip(self.parts.items(), logits.split(self.sizes), strict=True):
            if len(own):
                modules.append(module)
                kept.append(tuple(int((task > 0).sum()) for task in own.split(list(part.counts))))
                directions.append(tuple(part.counts))
        tasks = tuple(adapter.name for adapter in self.adapters)
        return KeptRanks(tuple(modules), tasks, tuple(kept), tuple(directions))

    def merged(self, logits: Tensor, coefficients: Tensor) -> MergedAdapter:
        """Return the merge with these masks and coefficients, low-rank where the adapters are."""
        logits, coefficients = logits.detach().cpu(), coefficients.detach().cpu()
        pieces = zip(self.parts.items(), logits.split(self.sizes), coefficients, strict=True)
        updates = {module: part.to("cpu").update(own, weights) for (module, part), own, weights in pieces}
        return MergedAdapter(updates, self.settings, self.adapters)
