"""Numbers that say what merging will do to adapters: of each by itself, and of each two together."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergers.errors import SheetbendError
from mergers.functional.linalg import SVD
from mergers.methods.base import support, task_blocks
from mergers.parallel import map_modules
from mergers.run import Progress
from mergers.updates import Adapter, LowRankUpdate, Update

# A larger dense update is not decomposed: that takes minutes, and its subspaces are everything.
_LARGEST_DENSE = 1024


@dataclass(frozen=True)
class ModuleFacts:
    """One module of one adapter.

    Attributes:
        rank: The largest rank that the update can have.
        scale: What its factors are multiplied with; None for a dense update.
        norm: Frobenius norm.
        effective_rank: exp of the entropy of the squared singular values, which sum to one; None where they were not
            computed (large dense updates). A flat spectrum of k values has k, a single direction 1.
    """

    rank: int
    scale: float | None
    norm: float
    effective_rank: float | None


@dataclass(frozen=True)
class PairFacts:
    """One module of two adapters.

    Attributes:
        dot: Inner product of the updates.
        inputs: Overlap of the spaces that the updates read from: the mean squared cosine of the principal angles, from
            0 (orthogonal) to 1 (one contains the other). None for vectors and large dense updates.
        outputs: The same of the spaces they write to.
        inputs_by_chance: What random spaces of these dimensions have on average.
        outputs_by_chance: The same of the outputs.
        entries: How many entries are not zero in both.
        conflicts: In how many of these the signs differ.
        mass: Sum of |a b| over all entries.
        conflicting_mass: Of this, where the signs differ.
    """

    dot: float
    inputs: float | None
    outputs: float | None
    inputs_by_chance: float | None
    outputs_by_chance: float | None
    entries: int
    conflicts: int
    mass: float
    conflicting_mass: float

    @property
    def sign_conflict(self) -> float:
        """Fraction of the entries in which the signs differ."""
        return _ratio(self.conflicts, self.entries)

    @property
    def weighted_conflict(self) -> float:
        """The same with each entry weighted by |a b|."""
        return _ratio(self.conflicting_mass, self.mass)


@dataclass(frozen=True)
class Pair:
    """Two adapters, over all modules that both have.

    Attributes:
        first: Name of one.
        second: Name of the other.
        cosine: Of the angle between the updates as one long vector.
        inputs: Mean over the modules of the overlap of input spaces; None if no module has one.
        outputs: The same of output spaces.
        inputs_by_chance: Mean over the modules of what random spaces have.
        outputs_by_chance: The same of output spaces.
        sign_conflict: Fraction of the entries in which the signs differ.
        weighted_conflict: The same with each entry weighted by |a b|. The cosine is what remains:
            (1 - 2 weighted_conflict) times the cosine of the magnitudes.
        modules: The same numbers of each module.
    """

    first: str
    second: str
    cosine: float
    inputs: float | None
    outputs: float | None
    inputs_by_chance: float | None
    outputs_by_chance: float | None
    sign_conflict: float
    weighted_conflict: float
    modules: dict[str, PairFacts]


@dataclass(frozen=True)
class Analysis:
    """What `analyse` found.

    Attributes:
        adapters: Adapter to module to facts.
        pairs: Each two adapters, in the order given.
        skipped: Modules that not all adapters have in one shape; they are in no pair.
    """

    adapters: dict[str, dict[str, ModuleFacts]]
    pairs: list[Pair]
    skipped: list[str]

    def norm(self, adapter: str) -> float:
        """Return the Frobenius norm over all modules."""
        return math.sqrt(sum(facts.norm**2 for facts in self.adapters[adapter].values()))

    def effective_rank(self, adapter: str) -> float | None:
        """Return the mean effective rank of the modules, or None where it is known of none."""
        return _mean([facts.effective_rank for facts in self.adapters[adapter].values()])


def analyse(adapters: Sequence[Adapter], progress: Progress | None = None) -> Analysis:
    """Measure adapters one by one and in pairs, exactly, from their factors.

    Signs are compared block by block, in one sweep for all pairs; low-rank updates are never dense as a whole.

    Args:
        adapters: With distinct names. They need not fit together: pairs are over the modules that all have.
        progress: Called with ``"compare"``, modules done, and of how many.

    Raises:
        SheetbendError: Two adapters have one name.
    """
    names = [adapter.name for adapter in adapters]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise SheetbendError(f"two adapters are named {twice[0]!r}; give each its own name")
    modules = list(dict.fromkeys(module for adapter in adapters for module in adapter))
    facts: dict[str, dict[str, ModuleFacts]] = {name: {} for name in names}
    pairs: dict[tuple[str, str], dict[str, PairFacts]] = {pair: {} for pair in itertools.combinations(names, 2)}
    skipped = []

    def one(module: str) -> tuple[dict[str, ModuleFacts], list[PairFacts] | None]:
        updates = {adapter.name: adapter[module].load() for adapter in adapters if module in adapter}
        svds = {name: _svd(update) for name, update in updates.items()}
        own = {name: _facts(update, svds[name]) for name, update in updates.items()}
        shared = len(updates) == len(adapters) and len({update.shape for update in updates.values()}) == 1
        return own, _compare(list(updates.values()), list(svds.values())) if shared else None

    for done, (module, (own, compared)) in enumerate(zip(modules, map_modules(one, modules), strict=True), start=1):
        for name, found in own.items():
            facts[name][module] = found
        if compared is None:
            skipped.append(module)
        else:
            for pair, found in zip(pairs, compared, strict=True):
                pairs[pair][module] = found
        if progress is not None:
            progress("compare", done, len(modules))
    return Analysis(facts, [_pair(*pair, found, facts) for pair, found in pairs.items()], skipped)


def effective_rank(s: Tensor) -> float:
    """Return exp of the entropy of the squared singular values, normalised to sum to one; 0 for a zero matrix.

    >>> round(effective_rank(torch.ones(4)), 6)
    4.0
    """
    total = s.double().square().sum()
    if total == 0:
        return 0.0
    weights = s.double().square() / total
    return float(torch.exp(torch.special.entr(weights).sum()))


def subspace_overlap(one: Tensor, other: Tensor) -> float | None:
    """Return the mean squared cosine of the principal angles between two spaces; None if one of them is empty.

    Args:
        one: (n, k), orthonormal columns.
        other: (n, l), likewise.

    >>> subspace_overlap(torch.eye(3)[:, :2], torch.eye(3)[:, 1:])
    0.5
    """
    least = min(one.shape[1], other.shape[1])
    return min(float((one.T @ other).square().sum()) / least, 1.0) if least else None


def _svd(update: Update) -> SVD | None:
    """Return the decomposition without the singular values that are rounding; None for what has none at hand."""
    if len(update.shape) != 2 or (not isinstance(update, LowRankUpdate) and min(update.shape) > _LARGEST_DENSE):
        return None
    return support(update)


def _facts(update: Update, svd: SVD | None) -> ModuleFacts:
    """Return the numbers of one update."""
    return ModuleFacts(
        rank=update.rank,
        scale=update.scale if isinstance(update, LowRankUpdate) else None,
        norm=math.sqrt(update.squared_norm()) if svd is None else float(svd.s.norm()),
        effective_rank=effective_rank(svd.s) if svd is not None else (1.0 if len(update.shape) == 1 else None),
    )


def _compare(updates: Sequence[Update], svds: Sequence[SVD | None]) -> list[PairFacts]:
    """Return the numbers of each two updates of one module."""
    tasks = len(updates)
    both, agreements, mass = (torch.zeros(tasks, tasks, dtype=torch.float64) for _ in range(3))
    dots = _dots(updates)
    if tasks > 1:
        values, signs = torch.empty(0), torch.empty(0)  # kept for all blocks: fresh memory takes longer than the work
        for blocks in task_blocks(updates):
            torch.stack([block.reshape(-1) for block in blocks], out=values.resize_(tasks, blocks[0].numel()))
            # Sums of ones are exact in float32: a block has far less than 2 ** 24 entries.
            torch.sign(values, out=signs.resize_(values.shape))
            agreeing = signs @ signs.T
            agreements += agreeing
            if agreeing.diagonal().min() < values.shape[1]:  # there are zeros
                there = signs.abs()
                both += there @ there.T
            else:
                both += values.shape[1]
            values.abs_()
            mass += values @ values.T
    found = []
    for i, j in itertools.combinations(range(tasks), 2):
        overlaps: list[float | None] = [None] * 4
        if svds[i] and svds[j] and svds[i].s.numel() and svds[j].s.numel():
            largest = max(svds[i].s.numel(), svds[j].s.numel())
            overlaps = [
                subspace_overlap(svds[i].Vh.T, svds[j].Vh.T),
                subspace_overlap(svds[i].U, svds[j].U),
                largest / svds[i].Vh.shape[1],
                largest / svds[i].U.shape[0],
            ]
        found.append(
            PairFacts(
                float(dots[i, j]),
                *overlaps,
                entries=int(both[i, j]),
                conflicts=round(float(both[i, j] - agreements[i, j]) / 2),
                mass=float(mass[i, j]),
                conflicting_mass=max(float(mass[i, j] - dots[i, j]) / 2, 0.0),
            )
        )
    return found


def _dots(updates: Sequence[Update]) -> Tensor:
    """Return all inner products, (T, T) float64; of B A and D C it is the sum of (B^T D) * (A C^T)."""
    if not all(isinstance(update, LowRankUpdate) for update in updates):
        long = [update.dense().flatten() for update in updates]
        return torch.stack([torch.stack([(one * other).sum(dtype=torch.float64) for other in long]) for one in long])
    factors = [update.factors() for update in updates]
    B, A = torch.cat([B for B, _ in factors], dim=1).double(), torch.cat([A for _, A in factors]).double()
    products = (B.T @ B) * (A @ A.T)
    ranks = [A.shape[0] for _, A in factors]
    return torch.stack([torch.stack([part.sum() for part in row.split(ranks, dim=1)]) for row in products.split(ranks)])


def _pair(first: str, second: str, modules: dict[str, PairFacts], facts: dict[str, dict[str, ModuleFacts]]) -> Pair:
    """Sum up two adapters."""
    found = list(modules.values())
    norms = [math.sqrt(sum(facts[name][module].norm ** 2 for module in modules)) for name in (first, second)]
    entries, mass = sum(f.entries for f in found), sum(f.mass for f in found)
    return Pair(
        first,
        second,
        cosine=_ratio(sum(f.dot for f in found), norms[0] * norms[1]),
        inputs=_mean([f.inputs for f in found]),
        outputs=_mean([f.outputs for f in found]),
        inputs_by_chance=_mean([f.inputs_by_chance for f in found]),
        outputs_by_chance=_mean([f.outputs_by_chance for f in found]),
        sign_conflict=_ratio(sum(f.conflicts for f in found), entries),
        weighted_conflict=_ratio(sum(f.conflicting_mass for f in found), mass),
        modules=modules,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of those that are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
