"""``--seeds``: one command once a seed, and what its variants reach on average."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from callbacks.results import Results
from callbacks.spread import spread_csv, spread_view
from launch.reporting import OF_RUNS, write_report
from launch.series import FILE, Entry, Outcome, check_seeds, run_series
from mergers.errors import SheetbendError
from mergers.files import atomic_write

WORD = "{seed}"
TABLE = "seeds.csv"


def run(command: str, seeds: Sequence[int], configuration: Mapping[str, Any], words: Sequence[str]) -> None:
    """Run a subcommand once a seed, then show the mean over seeds.

    Args:
        command: such as ``fit``.
        seeds: as given.
        configuration: all settings as plain values.
        words: of the command line.

    Raises:
        SheetbendError: the seeds make no series; or one of them failed.
    """
    check_seeds(seeds)
    _check_others(seeds, configuration, words)
    root = Path(configuration["trainer"]["default_root_dir"])
    if WORD in str(root):
        raise SheetbendError(f"trainer.default_root_dir is {root}; --seeds adds seed-SEED to it, leave {WORD} out")
    outcomes = run_series(command, configuration, entries(seeds, root), root)
    show(outcomes, root)


def entries(seeds: Sequence[int], root: Path) -> list[Entry]:
    """Return one run a seed.

    >>> entries([3], Path("runs/x"))[0].folder.as_posix()
    'runs/x/seed-3'
    """
    return [
        Entry(f"seed {seed}", root / f"seed-{seed}", {"seed_everything": seed}, {"seed": str(seed)}) for seed in seeds
    ]


def _check_others(seeds: Sequence[int], configuration: Mapping[str, Any], words: Sequence[str]) -> None:
    """Refuse a seed beside the seeds that is none of them, or that would keep them from having an effect."""
    seed = configuration.get("seed_everything")
    given = any(word.partition("=")[0] == "--seed_everything" for word in words)
    if isinstance(seed, bool) or ((given or seed != 0) and seed not in seeds):  # 0 is the default
        raise SheetbendError(
            f"seed_everything is {seed} beside seeds {' '.join(map(str, seeds))}; leave one of both out"
        )
    fixed = ((configuration.get("model") or {}).get("init_args") or {}).get("seed")
    if fixed is not None:
        raise SheetbendError(f"model.seed is {fixed}, whatever --seeds says; leave it out")


def show(outcomes: Sequence[Outcome], root: Path) -> None:
    """Print mean and spread of all runs that measured something, and where everything is."""
    measured = [outcome for outcome in outcomes if outcome.results is not None]
    if not measured:
        print(f"{root}: {', '.join(outcome.entry.folder.name for outcome in outcomes)}", flush=True)
        return
    results: list[Results] = [outcome.results for outcome in measured]
    console = Console()
    console.print()
    console.print(spread_view(results, console.width))
    kept = [outcome.folder for outcome in measured if outcome.written]
    if not kept:
        return
    report = report_folder(root, measured[0])
    with atomic_write(report / TABLE) as temporary:
        temporary.write_text(spread_csv({o.entry.label: o.results for o in measured}), encoding="utf-8")
    write_report(kept, report)
    where = ", ".join(folder.relative_to(root).as_posix() for folder in kept)
    names = [(report / name).relative_to(root).as_posix() for name in ("report.html", "report.md", TABLE)]
    written = ", ".join([*names, FILE])
    console.print(f"{root}: {where}; {written}", soft_wrap=True, markup=False, highlight=False)


def report_folder(root: Path, outcome: Outcome) -> Path:
    """Return where the report of all seeds goes: where in ``root`` the results of each seed are in its own folder.

    That of ``search`` goes to ``searches/<name>``, say, and so replaces no other. Where a single run has left its own
    report, it goes below ``seeds`` in place of ``root``.
    """
    place = outcome.folder.relative_to(outcome.entry.folder)
    taken = any((folder / name).exists() for folder in (root, root / place) for name in OF_RUNS)
    return root / ("seeds" if taken else "") / place
