"""What a merge will take, before it is begun: memory by counting, time by a trial of one small piece."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from mergers.memory import resident_memory
from mergers.merger import Merger
from mergers.output.truncation import rounding_error, truncate
from mergers.spaces import Core, KnOTS
from mergers.updates import Adapter, DenseUpdate, LowRankUpdate, Update

# Trials grow from a share of these: steps of a QR, and entries over all tasks. None is begun that should end after
# the time for them.
_TRIAL_STEPS = 3e8
_TRIAL_ENTRIES = 2e7
_SMALLEST_TRIAL = 1 / 64
_TRIAL_SECONDS = 1.0
# What a disk writes in a second; only full models are large enough for this to count.
_BYTES_A_SECOND = 4e8
# What one module's counts of magnitudes take for one task, for a common width of the window that is counted.
_HISTOGRAM_BYTES = 3 << 19
# What the threads, and pieces of freed memory that are not given back, take on top of what is counted.
_SLACK = 1.1


@dataclass(frozen=True)
class Estimate:
    """What a merge will take.

    Attributes:
        rank: Largest rank of a saved module; None for a full model.
        written: Bytes of the result.
        resident: Bytes that the process holds before the work starts, the adapters among them.
        kept: Bytes that grow until the work ends: alignments, and merged factors that wait to be written.
        working: Bytes for the largest module on all threads.
        seconds: Of the whole work, from a trial; None if there was none.
    """

    rank: int | None
    written: int
    resident: int
    kept: int
    working: int
    seconds: float | None

    @property
    def peak(self) -> int:
        """Largest resident memory in bytes."""
        return self.resident + round(_SLACK * (self.kept + self.working))


@dataclass(frozen=True)
class _Piece:
    """One module, by its sizes: a weight (rows, columns), and coordinates (p, q)."""

    rows: int
    columns: int
    tasks: int
    ranks: int  # sum over the tasks
    p: int
    q: int

    @property
    def alignment_steps(self) -> float:
        """What a QR of all factors takes, up to a factor."""
        return float(self.rows + self.columns) * self.ranks**2

    @property
    def entries(self) -> float:
        """Entries of the coordinates of all tasks."""
        return float(self.tasks * self.p * self.q)


class _Trial(NamedTuple):
    """What a trial took in seconds, and how large it was."""

    aligning: float
    rest: float
    steps: float
    entries: float


def estimate(
    merger: Merger,
    adapters: Sequence[Adapter],
    rank: int | None = None,
    base_model: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    trial: bool = True,
) -> Estimate:
    """Return what `save_merged` will take with these arguments; they are not checked.

    Args:
        merger: How to merge.
        adapters: One a task, of the same modules.
        rank: As for `save_merged`.
        base_model: As for `save_merged`.
        dtype: Of the saved factors.
        trial: Whether to time a piece of the work, which takes up to about a second.
    """
    pieces = {module: _piece(merger, [adapter[module] for adapter in adapters]) for module in adapters[0]}
    workers = min(torch.get_num_threads(), len(pieces))
    saved = {module: _saved_rank(merger, piece, rank) for module, piece in pieces.items()}
    alignment = sum(_alignment_bytes(merger, piece) for piece in pieces.values())
    if base_model is None:
        written = sum((p.rows + p.columns) * saved[module] for module, p in pieces.items()) * dtype.itemsize
        kept = alignment + written
    else:
        written = sum(path.stat().st_size for path in Path(base_model).glob("*.safetensors"))
        kept = alignment
    each = [_working_bytes(merger, piece, rank, base_model is not None) for piece in pieces.values()]
    working = max(sum(each[start : start + workers]) for start in range(len(each)))  # neighbours are worked on together
    if _entrywise(merger):  # results of the pass that looks for thresholds, until they are summed
        working += _HISTOGRAM_BYTES * len(adapters) * (2 * workers + 2)
    resident = resident_memory()
    seconds = _seconds(merger, adapters, pieces, rank, base_model is not None, dtype, workers) if trial else None
    if seconds is not None:
        seconds += written * (2 if base_model is not None else 1) / _BYTES_A_SECOND
    largest = None if base_model is not None else max(saved.values())
    return Estimate(largest, written, resident, kept, working, seconds)


def merging_bytes(merger: Merger, adapters: Sequence[Adapter]) -> int:
    """Return what `Merger.merge` holds at its peak beyond the adapters, its result included.

    Args:
        merger: How to merge.
        adapters: One a task, of the same modules.
    """
    pieces = [_piece(merger, [adapter[module] for adapter in adapters]) for module in adapters[0]]
    result = sum(
        (p.rows + p.columns) * _saved_rank(merger, p, None) if merger.low_rank else p.rows * p.columns for p in pieces
    )
    each = [_working_bytes(merger, piece, None, full_model=False) for piece in pieces]
    workers = min(torch.get_num_threads(), len(pieces))
    working = max((sum(each[start : start + workers]) for start in range(len(each))), default=0)
    return sum(_alignment_bytes(merger, piece) for piece in pieces) + 4 * result + working


def _piece(merger: Merger, updates: Sequence[Update]) -> _Piece:
    """Return the sizes of one module; a vector is a matrix of one column, which no space aligns."""
    rows, columns = (*updates[0].shape, 1)[:2]
    ranks = sum(min(update.rank, rows, columns) for update in updates)
    p, q = rows, columns
    if len(updates[0].shape) == 2:
        p, q = merger.space.sizes(rows, columns, ranks)
    return _Piece(rows, columns, len(updates), ranks, p, q)


def _saved_rank(merger: Merger, piece: _Piece, rank: int | None) -> int:
    """Return the largest rank that a saved module can have."""
    if not merger.space.costly:  # a weighted sum keeps all factors side by side
        largest = piece.ranks
    elif isinstance(merger.space, KnOTS):  # it has one basis, whatever the other side's size is
        largest = piece.p if merger.space.concatenate == "inputs" else piece.q
    else:
        largest = min(piece.p, piece.q)
    return max(largest if rank is None else min(rank, largest, piece.rows, piece.columns), 1)


def _alignment_bytes(merger: Merger, piece: _Piece) -> int:
    """Return what the float32 coordinates and bases of a module take."""
    if not merger.space.costly or piece.columns == 1:
        return 0
    bases = (piece.rows * piece.p if piece.p < piece.rows or isinstance(merger.space, Core) else 0) + (
        piece.columns * piece.q if piece.q < piece.columns or isinstance(merger.space, Core) else 0
    )
    return 4 * (bases + piece.ranks * (piece.p + piece.q))


def _working_bytes(merger: Merger, piece: _Piece, rank: int | None, full_model: bool) -> int:
    """Return what is held while a module is aligned, or while it is merged and written, whichever is more."""
    sides, entries = piece.rows + piece.columns, piece.p * piece.q
    aligning = 8 * (3 * piece.ranks * sides + 6 * piece.ranks**2) if merger.space.costly and piece.columns > 1 else 0
    entrywise = _entrywise(merger)
    factored = merger.space.low_rank(dense_coordinates=entrywise)
    if entrywise:
        merging = 4 * entries * merger.method.working_tensors(piece.tasks)
    else:
        merging = 8 * 4 * piece.ranks * (piece.p + piece.q)
    finishing = 0
    if merger.finish is not None:
        # A dense decomposition in float64: the matrix, a copy, both sides, and LAPACK's own of about two more.
        finishing = 8 * 6 * entries if entrywise else 8 * 4 * piece.ranks * (piece.p + piece.q)
    if full_model:
        writing = 4 * piece.rows * piece.columns + 12 * min(piece.rows * piece.columns, 1 << 22)
    elif factored:  # the products and their rounding are computed in float64
        writing = 8 * 5 * sides * _saved_rank(merger, piece, None)
    elif rank is not None and 2 * (rank + 16) >= min(piece.rows, piece.columns):
        writing = 8 * 4 * piece.rows * piece.columns
    else:  # the norm of the whole is summed in float64, rarely on all threads at once
        writing = max(4 * piece.rows * piece.columns, 8 * 5 * sides * ((rank or 0) + 16))
    return max(aligning, merging + max(finishing, writing))


def _entrywise(merger: Merger) -> bool:
    """Return whether merged coordinates are dense."""
    return any(step.entrywise for step in (*merger.transforms, merger.method))


def _seconds(
    merger: Merger,
    adapters: Sequence[Adapter],
    pieces: dict[str, _Piece],
    rank: int | None,
    full_model: bool,
    dtype: torch.dtype,
    workers: int,
) -> float:
    """Time a module a thread, cut small, then less small while there is time, and scale what they took to all.

    The alignment is scaled by the steps of its QR, (out + in) R^2 with R the sum of the ranks. All else takes some time
    for each module and some for each entry of the coordinates, by the line through the last two trials.
    """
    by_size = sorted(pieces, key=lambda name: pieces[name].entries)
    chosen = [by_size[(2 * index + 1) * len(by_size) // (2 * workers)] for index in range(workers)]
    trials: list[_Trial] = []
    started = time.perf_counter()
    share = _SMALLEST_TRIAL
    while True:
        cut = {module: _cut([a[module] for a in adapters], merger, share / workers) for module in chosen}
        sizes = [_piece(merger, updates) for updates in cut.values()]
        tasks = [
            Adapter({module: updates[index] for module, updates in cut.items()}, adapter.name)
            for index, adapter in enumerate(adapters)
        ]
        aligning, rest = _timed(merger, tasks, rank, full_model, dtype)
        if share < 1 and aligning + rest < _TRIAL_SECONDS / 4:  # the first call loads libraries
            aligning, rest = min((aligning, rest), _timed(merger, tasks, rank, full_model, dtype), key=sum)
        trials.append(_Trial(aligning, rest, _total(sizes, "alignment_steps"), _total(sizes, "entries")))
        if share == 1 or all(size == pieces[module] for module, size in zip(chosen, sizes, strict=True)):
            break
        left = _TRIAL_SECONDS - (time.perf_counter() - started)
        share = _next_share(trials, share, left)
        if share is None:
            break
    last, before = trials[-1], trials[-2] if len(trials) > 1 else trials[-1]
    steps = _total(pieces.values(), "alignment_steps") / max(last.steps, 1.0)
    each = last.rest / max(last.entries, 1.0)
    if last.entries > 1.5 * before.entries:
        each = min(max((last.rest - before.rest) / (last.entries - before.entries), 0.0), each)
    module = (last.rest - each * last.entries) / workers
    return last.aligning * steps + module * len(pieces) + each * _total(pieces.values(), "entries")


def _next_share(trials: Sequence[_Trial], share: float, left: float) -> float | None:
    """Return how large the next trial may be to end in the time that is left, or None."""
    last, before = trials[-1], trials[-2] if len(trials) > 1 else trials[-1]
    now, then = last.aligning + last.rest, before.aligning + before.rest
    # What does not grow with the size is known from the second trial on; of the first, most does not.
    if len(trials) > 1:
        growing = max(now - then, 0.0) / max(1 - before.entries / max(last.entries, 1.0), 0.1)
    else:
        growing = now / 4
    for larger in (1.0, 1 / 4, 1 / 16):
        if larger > share and now + growing * (larger / share - 1) <= left:
            return larger if len(trials) > 1 else min(larger, 1 / 16)
    return None


def _timed(
    merger: Merger, adapters: Sequence[Adapter], rank: int | None, full_model: bool, dtype: torch.dtype
) -> tuple[float, float]:
    """Return the seconds that the alignment of small adapters takes, and all else."""

    def then(_: str, update: Update) -> None:
        if full_model:
            update.dense()
            return
        if rank is not None and len(update.shape) == 2:
            update = truncate(update, min(rank, *update.shape)).update
        if isinstance(update, LowRankUpdate):
            rounding_error(update, dtype)

    def note(stage: str, done: int, total: int) -> None:
        if stage == "align":
            aligned.append(time.perf_counter())

    started = time.perf_counter()
    for adapter in adapters:
        adapter.content_hash()
    aligned = [time.perf_counter()]
    begun = aligned[0]
    for _ in merger.stream(adapters, same_base=True, progress=note, then=then):
        pass
    aligning = aligned[-1] - begun
    return aligning, time.perf_counter() - started - aligning


def _total(pieces: Iterable[_Piece], what: str) -> float:
    return sum(getattr(piece, what) for piece in pieces)


def _cut(updates: Sequence[Update], merger: Merger, share: float) -> list[Update]:
    """Return the updates with fewer rows and columns, or of lower rank, to fit a share of the largest trial."""
    step, thin = 1, 1
    while True:
        sizes = _piece(merger, [_thinned(update, step, thin, sketch=True) for update in updates])
        if sizes.entries > _TRIAL_ENTRIES * share:
            step += 1
        elif merger.space.costly and sizes.alignment_steps > _TRIAL_STEPS * share:
            low_rank = all(isinstance(update, LowRankUpdate) for update in updates)
            step, thin = (step, 2 * thin) if low_rank and sizes.ranks > sizes.tasks else (step + 1, thin)
        else:
            return [_thinned(update, step, thin) for update in updates]


def _thinned(update: Update, step: int, thin: int, sketch: bool = False) -> Update:
    """Return every ``step``-th row and column, in every ``thin``-th direction; a sketch has only the shape."""
    if isinstance(update, LowRankUpdate):
        return LowRankUpdate(A=update.A[::thin, ::step], B=update.B[::step, ::thin], scale=update.scale)
    if sketch:
        return DenseUpdate(torch.empty([-(-size // step) for size in update.shape], device="meta"))
    return update.load() if step == 1 else DenseUpdate(update.sample(step))
