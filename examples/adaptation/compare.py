"""Compare learned merges with static ones: `python examples/adaptation/compare.py --seeds 0 1 2`.

Fine-tunes the quickstart's models, LoRA adapters and whole ones, once a seed; merges them in every way of `plan.py`;
and writes comparison.csv, .md and .png into the folder. ``--search`` comes first: it tries settings on validation data
of seed 0 and writes chosen.json beside this file. Either goes on where it stopped when the same command is given again.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # a tool of the repository: importable without being installed

from rich.console import Console  # noqa: E402  the path comes first

from callbacks.plots import png  # noqa: E402
from examples.adaptation import search, tables  # noqa: E402
from examples.adaptation.plan import CHOSEN, CONFIG, WORLDS, Chosen, Job, Plan, read_chosen  # noqa: E402
from mergers import SheetbendError  # noqa: E402
from mergers.files import atomic_write  # noqa: E402


def run_job(job: Job, folder: Path) -> bool:
    """Run one command unless it has ended well before; return whether it ran.

    What it prints goes to ``logs/`` in ``folder``; ``done/`` there remembers what has ended well.

    Raises:
        SheetbendError: it failed; the last line that it printed is in the message.
    """
    log, done = folder / "logs" / f"{job.name}.log", folder / "done" / f"{job.name}.json"
    words = list(job.words)
    if done.is_file() and json.loads(done.read_text(encoding="utf-8")) == words and job.output.exists():
        return False
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w", encoding="utf-8") as output:
        status = subprocess.run(
            [sys.executable, *words], stdout=output, stderr=subprocess.STDOUT, env=environment, check=False
        ).returncode
    if status:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
        raise SheetbendError(f"{job.name} ended with status {status}: {last} (all of it: {log})")
    done.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(done) as temporary:
        temporary.write_text(json.dumps(words) + "\n", encoding="utf-8")
    return True


def run_jobs(jobs: Sequence[Job], folder: Path, parallel: int) -> Iterator[str]:
    """Run commands, ``parallel`` at a time; yield the name of each that ended. After a failure none begins."""
    with ThreadPoolExecutor(parallel) as pool:
        futures = {pool.submit(run_job, job, folder): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future].name + ("" if future.result() else " (done before)")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_stage(jobs: Sequence[Job], folder: Path, parallel: int, console: Console) -> None:
    """Run commands and say how far they are."""
    for number, name in enumerate(run_jobs(jobs, folder, parallel), 1):
        console.print(f"{number}/{len(jobs)}  {name}", highlight=False, markup=False)


def choose(plan: Plan, worlds: Sequence[str], path: Path, parallel: int, console: Console) -> None:
    """Try settings on validation data and write the best of each row to ``path``."""
    run_stage([plan.training(world, search.SEED) for world in worlds], plan.folder, parallel, console)
    static = {world: search.static_trials(plan, world) for world in worlds}
    bests = {world: search.best(tried) for world, tried in static.items()}
    run_stage(
        [job for world in worlds for job in search.jobs(plan, world, bests[world])], plan.folder, parallel, console
    )
    for world in worlds:
        tried = [*static[world], *search.learned_trials(plan, world, bests[world])]
        best = search.best(tried)
        search.show(console, world, tried, [(row, choice) for row, (choice, _) in best.items()])
        search.write_chosen({world: best}, path)
    console.print(f"written: {path}", highlight=False, markup=False, soft_wrap=True)


def write_tables(plan: Plan, worlds: Sequence[str], seeds: Sequence[int], chosen: Chosen, console: Console) -> None:
    """Print the tables and write all files."""
    entries = tables.read_entries(plan, worlds, seeds, chosen)
    shown = [tables.World.of(world, entries) for world in worlds]
    for world in shown:
        console.print(tables.rich_table(world))
    contents = {
        "comparison.csv": tables.tidy_csv(entries).encode(),
        "comparison.md": tables.markdown(shown, seeds, plan.steps).encode(),
        "comparison.png": png(tables.picture(shown)),
    }
    for name, content in contents.items():
        with atomic_write(plan.folder / name) as temporary:
            temporary.write_bytes(content)
    console.print(f"{plan.folder}: {', '.join(contents)}", highlight=False, markup=False, soft_wrap=True)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Compare learned merges with static ones on the quickstart tasks.")
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    add("--worlds", nargs="+", choices=list(WORLDS), default=list(WORLDS), help="(default: both)")
    add("--steps", type=int, default=200, help="of an adaptation (default: 200)")
    add("--folder", type=Path, default=Path("runs/adaptation"), help="of all runs (default: runs/adaptation)")
    add("--config", type=Path, default=CONFIG, help="of a fit of adapters (default: configs/quickstart.yaml)")
    add("--jobs", type=int, default=2, help="commands at a time, one thread each (default: 2)")
    add("--chosen", type=Path, default=CHOSEN, help="settings of all merges (default: chosen.json beside this file)")
    add("--search", action="store_true", help="choose settings on validation data of seed 0 instead")
    arguments = parser.parse_args(argv)
    for name in ("steps", "jobs"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} is {getattr(arguments, name)}; give 1 or more")
    for name in ("seeds", "worlds"):
        if len(set(getattr(arguments, name))) < len(getattr(arguments, name)):
            parser.error(f"--{name} names one twice; name it once")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Search, or run everything and make the tables."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    plan, console = Plan(arguments.folder, arguments.steps, arguments.config), Console()
    try:
        if arguments.search:
            choose(plan, arguments.worlds, arguments.chosen, arguments.jobs, console)
            return
        chosen = read_chosen(arguments.worlds, arguments.chosen)
        for jobs in plan.stages(arguments.worlds, arguments.seeds, chosen):
            run_stage(jobs, plan.folder, arguments.jobs, console)
        write_tables(plan, arguments.worlds, arguments.seeds, chosen, console)
    except SheetbendError as error:
        print(f"compare.py: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
