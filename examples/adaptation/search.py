"""Settings of all merges, chosen on validation data: learned ones adapt to it, and its labels choose.

First the coefficients of the static merges, then those and the learning rates of the learned ones, each of which starts
where AdaRank's paper does and from the best static merge of its kind.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from callbacks.curves import Curves
from examples.adaptation.plan import ROWS, STARTS, Choice, Job, Plan, callbacks, static_methods, static_name
from lightning_modules.scores import headline_scores
from mergers.adaptive import AdaRank
from mergers.files import atomic_write

SEED = 0
LEARNING_RATES = (1e-3, 5e-3, 2e-2)
STATIC_COEFFICIENTS = {
    "task-arithmetic": (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0),
    "cart": (0.5, 1.0, 1.5, 2.0, 2.3, 2.8, 3.5, 4.5, 6.0),
    "tsv-m": (0.3, 0.5, 0.7, 0.85, 1.0, 1.2),
    "knots-ties": (0.4, 0.6, 0.8, 1.0, 1.2, 1.5),
}

# (row, settings, validation accuracy)
Tried = list[tuple[str, Choice, float]]
# The settings of each row with the highest accuracy, and that accuracy.
Best = dict[str, tuple[Choice, float]]


def candidates(static: Best) -> list[tuple[str, Choice]]:
    """Return what is tried of the learned merges, given the best of the static ones."""
    return [
        (name, Choice(coefficient, rate))
        for name, row in ROWS.items()
        for coefficient in sorted({AdaRank(row.start).first_coefficient, static[STARTS[row.start]][0].coefficient})
        for rate in LEARNING_RATES
    ]


def label(row: str, choice: Choice) -> str:
    """Return the name of a trial.

    >>> label("adarank-ta+d", Choice(0.3, 5e-3))
    'search_adarank-ta+d_c0.3_lr0.005'
    """
    return f"search_{row}_c{choice.coefficient:g}_lr{choice.learning_rate:g}"


def jobs(plan: Plan, world: str, static: Best) -> list[Job]:
    """Return the trials of the learned merges, each adapted to the validation data."""
    return [
        plan.adaptation(world, SEED, ROWS[row], choice, on="val", name=label(row, choice))
        for row, choice in candidates(static)
    ]


def learned_trials(plan: Plan, world: str, static: Best) -> Tried:
    """Return what `jobs` have found: the validation accuracy at the end, mean over tasks."""
    tried = []
    for row, choice in candidates(static):
        folder = plan.adaptation_folder(world, SEED, label(row, choice))
        tried.append((row, choice, last_accuracy(folder / "history.csv")))
    return tried


def last_accuracy(history: Path) -> float:
    """Return the last validation accuracy of an adaptation, mean over tasks."""
    points = Curves.from_csv(history.read_text(encoding="utf-8"), str(history)).points
    last = [point.value for point in points if point.step == points[-1].step]
    return sum(last) / len(last)


def static_trials(plan: Plan, world: str) -> Tried:
    """Measure the static merges on validation data, all in one sweep."""
    from launch.cli import quiet_libraries
    from launch.lightning_cli import SheetbendCLI  # its import takes seconds

    quiet_libraries()
    grids = {method: list(STATIC_COEFFICIENTS[method]) for method in static_methods(world)}
    cli = SheetbendCLI(["validate", *plan.common(world, SEED), "--trainer.callbacks", callbacks(world, grids)])
    values: dict[str, list[float]] = {}
    for score in headline_scores(cli.model.scores()):
        values.setdefault(score.variant, []).append(score.value)
    means = {name: sum(of_name) / len(of_name) for name, of_name in values.items()}
    return [(method, Choice(c), means[static_name(method, c)]) for method, grid in grids.items() for c in grid]


def best(tried: Tried) -> Best:
    """Return the settings of each row with the highest accuracy, the first of equals."""
    found: Best = {}
    for row, choice, accuracy in tried:
        if row not in found or accuracy > found[row][1]:
            found[row] = choice, accuracy
    return found


def write_chosen(chosen: dict[str, Best], path: Path) -> None:
    """Write the settings for `examples.adaptation.plan.read_chosen`; other worlds in the file stay as they are."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for world, rows in chosen.items():
        content[world] = {
            row: {key: value for key, value in asdict(choice).items() if value is not None}
            | {"val_accuracy": round(accuracy, 4)}
            for row, (choice, accuracy) in rows.items()
        }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def show(console: Console, world: str, tried: Tried, chosen: Iterable[tuple[str, Choice]]) -> None:
    """Print what was tried, the chosen settings in bold."""
    table = Table(title=f"Validation accuracy in %, {world}, seed {SEED}")
    for heading, side in (("row", "left"), ("coefficient", "right"), ("learning rate", "right"), ("mean", "right")):
        table.add_column(heading, justify=side)
    kept, before = set(chosen), ""
    for row, choice, accuracy in tried:
        if before not in ("", row):
            table.add_section()
        rate = "-" if choice.learning_rate is None else f"{choice.learning_rate:g}"
        texts = (row, f"{choice.coefficient:g}", rate, f"{100 * accuracy:.1f}")
        table.add_row(*texts, style="bold" if (row, choice) in kept else None)
        before = row
    console.print(table)
