"""Why a learned merge gains or loses: `python examples/adaptation/explain.py`, after compare.py.

Tests starts, learned merges and references once more, and writes answers.csv, answers.md and a picture a world into the
folder: for each task accuracy, entropy and the share of the answer given most often.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # a tool of the repository: importable without being installed

from callbacks.plots import png  # noqa: E402  the path comes first
from examples.adaptation import answers  # noqa: E402
from examples.adaptation.plan import CHOSEN, ROWS, WORLDS, Choice, Plan, merger, read_chosen, start_of  # noqa: E402
from mergers import SheetbendError  # noqa: E402
from mergers.files import atomic_write  # noqa: E402


def words(plan: Plan, world: str, seed: int, chosen: dict[str, Choice]) -> list[str]:
    """Return the command that tests all starts and learned merges of one world and seed."""
    run, mergers = plan.run_folder(world, seed), {}
    for name, row in ROWS.items():
        start, choice = start_of(world, row, chosen[name]), chosen[name]
        if start.startswith("start-"):
            mergers[start] = f"{plan.adaptation_folder(world, seed, start)}/merged"
        else:
            mergers[start] = merger(world, start.rsplit("-", 1)[0], choice.coefficient)
    if "knots-ties" in chosen:
        mergers["knots-ties"] = merger(world, "knots-ties", chosen["knots-ties"].coefficient)
    mergers |= {name: f"{plan.adaptation_folder(world, seed, name)}/merged" for name in ROWS}
    callbacks = [
        {"class_path": "callbacks.MergeCallback", "init_args": {"mergers": mergers}},
        {"class_path": "examples.adaptation.answers.AnswersCallback"},
    ]
    options = {
        "--config": plan.config,
        "--seed_everything": seed,
        "--model.adapters": f"{run}/{'adapters' if world == 'lora' else 'models'}/{{task}}",
        "--trainer.default_root_dir": run / "answers",
        "--trainer.callbacks": json.dumps(callbacks),
    }
    return ["test", *(word for key, value in options.items() for word in (key, str(value)))]


def measure(plan: Plan, world: str, seed: int, chosen: dict[str, Choice]) -> list[answers.Answers]:
    """Return the answers of all variants of one world and seed."""
    from launch.cli import quiet_libraries
    from launch.lightning_cli import SheetbendCLI  # its import takes seconds

    quiet_libraries()
    cli = SheetbendCLI(words(plan, world, seed, chosen))
    return next(one for one in cli.trainer.callbacks if isinstance(one, answers.AnswersCallback)).answers()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure everything and write the files."""
    parser = argparse.ArgumentParser(description="See how entropy and accuracy go together, before and after.")
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    add("--worlds", nargs="+", choices=list(WORLDS), default=list(WORLDS), help="(default: both)")
    add("--folder", type=Path, default=Path("runs/adaptation"), help="of compare.py (default: runs/adaptation)")
    add("--chosen", type=Path, default=CHOSEN, help="settings of all merges (default: chosen.json beside this file)")
    arguments = parser.parse_args(argv)
    plan, text = Plan(arguments.folder), ["# What became of the answers", ""]
    try:
        chosen = read_chosen(arguments.worlds, arguments.chosen)
        found = {
            world: {seed: measure(plan, world, seed, chosen[world]) for seed in arguments.seeds}
            for world in arguments.worlds
        }
    except SheetbendError as error:
        print(f"explain.py: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    contents = {"answers.csv": answers.tidy_csv(found).encode()}
    for world, of_world in found.items():
        starts = {name: start_of(world, row, chosen[world][name]) for name, row in ROWS.items()}
        text += [f"## {WORLDS[world]}", "", answers.markdown(of_world, starts), ""]
        contents[f"answers-{world}.png"] = png(answers.picture(of_world, starts))
    text += [
        "Each cell: accuracy in % / mean entropy in nats / share in % of the answer given most often; number of "
        f"classes in brackets; mean over seeds {', '.join(map(str, arguments.seeds))}. *Rank correlation* (Spearman) "
        "of entropy and accuracy over all variants and seeds: -1 where a lower entropy always means a better model.",
        "",
    ]
    contents["answers.md"] = "\n".join(text).encode()
    for name, content in contents.items():
        with atomic_write(plan.folder / name) as temporary:
            temporary.write_bytes(content)
    print("\n".join(text))


if __name__ == "__main__":
    main()
