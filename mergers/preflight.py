"""What a merge will take, before it is begun: memory by counting, time by a trial of one small piece."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mergers.merger import Merger
from mergers.output.truncation import rounding_error, truncate
from mergers.spaces import Core, Full, KnOTS
from mergers.updates import Adapter, DenseUpdate, LowRankUpdate, Update

# The trial stays below these, so that it takes well under a second: steps of a QR, and entries over all tasks.
_TRIAL_STEPS = 3e8
_TRIAL_ENTRIES = 6e6
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
    working = max(_working_bytes(merger, piece, rank, base_model is not None) for piece in pieces.values()) * workers
    if _entrywise(merger):  # results of the pass that looks for thresholds, until they are summed
        working += _HISTOGRAM_BYTES * len(adapters) * (2 * workers + 2)
    seconds = _seconds(merger, adapters, pieces, rank, base_model is not None, dtype, workers) if trial else None
    resident = resident_memory()  # after the trial, which has loaded the libraries that the work needs
    if seconds is not None:
        seconds += written * (2 if base_model is not None else 1) / _BYTES_A_SECOND
    largest = None if base_model is not None else max(saved.values())
    return Estimate(largest, written, resident, kept, working, seconds)


def resident_memory() -> int:
    """Return the bytes of memory this process holds now, or held at most where the system does not say."""
    return _status("VmRSS") or peak_memory()


def peak_memory() -> int:
    """Return the bytes of memory this process has held at most, 0 where the system does not say."""
    found = _status("VmHWM")
    if found:
        return found
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(name: str) -> int:
    """Return a field of Linux's account of this process in bytes, 0 elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def _piece(merger: Merger, updates: Sequence[Update]) -> _Piece:
    """Return the sizes of one module; a vector is a matrix of one column, which no space aligns."""
    rows, columns = (*updates[0].shape, 1)[:2]
    ranks = sum(min(update.rank, rows, columns) for update in updates)
    p, q = rows, columns
    if len(updates[0].shape) == 2 and not isinstance(merger.space, Full):
        if not (isinstance(merger.space, KnOTS) and merger.space.concatenate == "outputs"):
            p = min(rows, ranks)
        if not isinstance(merger.space, KnOTS) or merger.space.concatenate == "outputs":
            q = min(columns, ranks)
    return _Piece(rows, columns, len(updates), ranks, p, q)


def _saved_rank(merger: Merger, piece: _Piece, rank: int | None) -> int:
    """Return the largest rank that a saved module can have."""
    # A weighted sum that is not aligned keeps all factors side by side.
    largest = min(piece.p, piece.q) if merger.space.costly else piece.ranks
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
    merging = 4 * entries if entrywise else 8 * 4 * piece.ranks * (piece.p + piece.q)
    if merger.finish is not None:
        merging += 8 * 4 * (entries if entrywise else piece.ranks * (piece.p + piece.q))
    if full_model:
        writing = 4 * piece.rows * piece.columns + 12 * min(piece.rows * piece.columns, 1 << 22)
    elif factored:  # the products and their rounding are computed in float64
        writing = 8 * 5 * sides * _saved_rank(merger, piece, None)
    elif rank is not None and 2 * (rank + 16) >= min(piece.rows, piece.columns):
        writing = 8 * 4 * piece.rows * piece.columns
    else:  # the norm of the whole is summed in float64
        writing = max(8 * piece.rows * piece.columns, 8 * 5 * sides * ((rank or 0) + 16))
    return max(aligning, merging + writing)


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
    """Time one module, cut small if it is large, and scale what it took to all modules.

    The alignment is scaled by the steps of its QR, (out + in) R^2 with R the sum of the ranks, all else by entries of
    the coordinates. Each worker does a module at a time, so the sum is divided by their number.
    """
    # A module of middle size: the smallest costs little but its overhead.
    module = sorted(pieces, key=lambda name: pieces[name].entries)[len(pieces) // 2]
    updates = _cut([adapter[module] for adapter in adapters], merger)
    tasks = [Adapter({module: update}, adapter.name) for adapter, update in zip(adapters, updates, strict=True)]
    sizes = _piece(merger, updates)

    def then(_: str, update: Update) -> None:
        if full_model:
            update.dense()
            return
        if rank is not None:
            update = truncate(update, min(rank, *update.shape)).update if len(update.shape) == 2 else update
        if isinstance(update, LowRankUpdate):
            rounding_error(update, dtype)

    def once() -> tuple[float, float]:
        marks = [time.perf_counter()]

        def note(stage: str, done: int, total: int) -> None:
            if stage == "align":
                marks.append(time.perf_counter())

        for update in updates:
            update.content_hash()
        hashed = time.perf_counter()
        list(merger.stream(tasks, same_base=True, progress=note, then=then))
        aligned = marks[-1] - hashed if len(marks) > 1 else 0.0
        return aligned, time.perf_counter() - marks[0] - aligned

    aligning, rest = once()
    if aligning + rest < 0.6:  # the first call loads libraries
        aligning, rest = once()
    steps = sum(piece.alignment_steps for piece in pieces.values()) / max(sizes.alignment_steps, 1.0)
    entries = sum(piece.entries for piece in pieces.values()) / max(sizes.entries, 1.0)
    return (aligning * steps + rest * entries) / workers


def _cut(updates: Sequence[Update], merger: Merger) -> list[Update]:
    """Return the updates with fewer rows and columns, or of lower rank, if a trial of the whole would take long."""
    step, thin = 1, 1
    while True:
        sizes = _piece(merger, [_thinned(update, step, thin, sketch=True) for update in updates])
        if sizes.entries > _TRIAL_ENTRIES:
            step *= 2
        elif merger.space.costly and sizes.alignment_steps > _TRIAL_STEPS:
            low_rank = all(isinstance(update, LowRankUpdate) for update in updates)
            step, thin = (step, 2 * thin) if low_rank and sizes.ranks > sizes.tasks else (2 * step, thin)
        else:
            return [_thinned(update, step, thin) for update in updates]


def _thinned(update: Update, step: int, thin: int, sketch: bool = False) -> Update:
    """Return every ``step``-th row and column, in every ``thin``-th direction; a sketch has only the shape."""
    if isinstance(update, LowRankUpdate):
        return LowRankUpdate(A=update.A[::thin, ::step], B=update.B[::step, ::thin], scale=update.scale)
    if sketch:
        return DenseUpdate(torch.empty([-(-size // step) for size in update.shape], device="meta"))
    return update.load() if step == 1 else DenseUpdate(update.sample(step))
