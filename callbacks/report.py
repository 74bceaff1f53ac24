"""report.md: what a run measured, for the reader of results."""

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from callbacks.adaptation_plots import COEFFICIENTS_PICTURE, KEPT_PICTURE
from callbacks.machine import machine_words
from callbacks.results import BY_NAME, Results, counted
from callbacks.results_table import Column, cells, joint_columns, metrics_note, own_columns, unlearned_note
from lightning_modules.scores import Score
from lightning_modules.variants import ENSEMBLE

CAPTIONS = {
    "bars.png": "{measure} of every variant on every task",
    "normalised.png": "{measure} as a share of finetuned, mean over tasks",
    "curves.png": "Validation {measure} over {fitting}",
    KEPT_PICTURE: "Directions that are kept, per layer and task",
    COEFFICIENTS_PICTURE: "Learned coefficients, per layer and task",
}


def report(
    results: Results,
    plots: Sequence[str] = (),
    command: str | None = None,
    caveats: Sequence[str] = (),
) -> str:
    """Return the report as GitHub-flavoured Markdown.

    Args:
        results: what was measured, with its metadata (``run``, ``seed``, ``versions``, ``splits``, ``seconds``).
        plots: names of the files in ``plots/`` that there are.
        command: what repeats the run.
        caveats: what the reader should know of the data, one sentence or two each.
    """
    meta = results.meta
    split = {"val": "validation"}.get(results.split, results.split)
    seed = f", seed {meta['seed']}" if meta.get("seed") is not None else ""
    size = f"{counted(len(results.tasks), 'task')}, {counted(results.examples, f'{split} example')}{seed}."
    parts = [f"# {meta.get('run', 'run')}: {split} results", size, *_tables(results)]
    fitting = "adaptation" if results.adapts else "training"
    captions = {name: words.format(measure=results.measure, fitting=fitting) for name, words in CAPTIONS.items()}
    parts += [f"![{words[0].upper()}{words[1:]}](plots/{name})" for name, words in captions.items() if name in plots]
    parts += _settings(results)
    parts += _repeat(command)
    parts += _data(results, split, {"fit": "adaptation"} if results.adapts else {})
    parts += ["## Read with care", "\n".join(f"- {line}" for line in [*_always(results, split), *caveats])]
    return "\n\n".join(parts) + "\n"


def tables(results: Results) -> str:
    """Return the tables alone, with what their columns mean."""
    return "\n\n".join(_tables(results)) + "\n"


def repeat_command(words: Sequence[str] | None = None) -> str:
    """Return the command line of this process as one would type it again.

    Args:
        words: program and arguments; ``sys.argv`` by default.

    >>> repeat_command(["/opt/bin/sheetbend", "fit", "--config", "my run.yaml"])
    "sheetbend fit --config 'my run.yaml'"
    >>> repeat_command(["launch/fit.py", "--config", "a.yaml"])
    'python launch/fit.py --config a.yaml'
    """
    program, *arguments = sys.argv if words is None else words
    path = Path(program)
    if path.name == "__main__.py":
        start = ["python", "-m", path.parent.name]
    elif path.suffix == ".py":
        here = Path.cwd()
        inside = path.is_absolute() and path.is_relative_to(here)
        start = ["python", str(path.relative_to(here) if inside else path)]
    else:
        start = [path.name]
    return shlex.join([*start, *arguments])


def _tables(results: Results) -> list[str]:
    parts = ["## Each task among its own labels", _numbers(results, own_columns(results))]
    words = f"{results.measure.capitalize()} in %; the mean weighs every task the same, whatever its size."
    if "finetuned" in results.variants:
        words += (
            " *norm. mean* divides each task's value by that of *finetuned* on the same examples in this run, then "
            "averages: 100 means that merging lost nothing. *finetuned* is each task's adapter on its own."
        )
    if results.merged:
        words += " Bold: the best merge."
    note = metrics_note(results)
    parts.append(" ".join([words, note] if note else [words]))
    label = {"finetuned": "finetuned *"}
    if BY_NAME in results.spaces:
        columns = joint_columns(results, "all", BY_NAME) + joint_columns(results, "mean", BY_NAME)
        by_name = ["Labels of equal names as one label:", _numbers(results, columns, label)]
    else:
        by_name = []
    joint = joint_columns(results) + joint_columns(results, "mean")
    if joint:
        parts += ["## One label space for all tasks", _numbers(results, joint, label), *by_name]
        parts.append(
            "*hits@k*, in %: the right label is among the k that score highest when the labels of all tasks compete; "
            "over all examples, and as the mean over tasks."
        )
        if "finetuned" in results.variants:
            parts.append(
                "\\* An oracle: *finetuned* runs each example through the adapter of the task it belongs to, so it is "
                "told the task. The merged models are not."
            )
    return parts


def _numbers(results: Results, columns: Sequence[Column], labels: dict[str, str] | None = None) -> str:
    marked = [cells(results, column) for column in columns]
    rows = []
    for name in results.variants:
        numbers = [f"**{text}**" if best else text for text, best in (column[name] for column in marked)]
        rows.append([(labels or {}).get(name, name).replace("*", "\\*"), *numbers])
    return _table(["variant", *(column.heading for column in columns)], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    lines = [header, ["---" if index < left else "---:" for index in range(len(header))], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _settings(results: Results) -> list[str]:
    rows = [[name, results.descriptions[name]] for name in results.variants if name in results.descriptions]
    return ["## Settings", _table(["variant", "what it is"], rows, left=2)] if rows else []


def _repeat(command: str | None) -> list[str]:
    if command is None:
        return []
    words = (
        "`config.yaml` beside this file holds every setting of the run, defaults included; where a later `test` made "
        "this report, `test_config.yaml` does."
    )
    return ["## How to repeat", f"```\n{command}\n```", words]


def _data(results: Results, split: str, phases: Mapping[str, str]) -> list[str]:
    variant = "finetuned" if "finetuned" in results.variants else results.variants[0]
    prints = results.meta.get("splits") or {}
    names = list(dict.fromkeys(name for task in results.tasks for name in prints.get(task, {})))
    rows = []
    for task in results.tasks:
        accuracy = results.metric(task) == "accuracy"
        error = standard_error(results.score(variant, task, "accuracy")) if accuracy else None
        row = [task, f"{results.count(task) or 0:,}", "-" if error is None else f"± {100 * error:.1f}"]
        rows.append(row + [f"`{prints.get(task, {}).get(name, '-')[:12]}`" for name in names])
    header = ["task", f"{split} examples", f"standard error of {variant}", *(f"{name} fingerprint" for name in names)]
    parts = ["## Data and versions", _table(header, rows)]
    if names:
        parts.append("Runs whose fingerprints agree saw the same examples; `results.json` has them in full.")
    facts = [f"{name} {version}" for name, version in (results.meta.get("versions") or {}).items()]
    seconds = results.meta.get("seconds") or {}
    facts += [f"{phases.get(name, name)} {_duration(value)}" for name, value in seconds.items()]
    facts += machine_words(results.meta)
    return [*parts, ", ".join(facts) + "."] if facts else parts


def _always(results: Results, split: str) -> list[str]:
    tasks = [task for task in results.tasks if results.metric(task) == "accuracy"]
    counts = {task: results.count(task) for task in tasks if results.count(task)}
    lines = ["One seed: differences under two points are noise; run at least three seeds before ranking."]
    if counts:
        least = min(counts, key=counts.get)
        step = 100 / counts[least]
        lines.append(
            f"The {split} split of {least} has {counts[least]:,} examples: one of them is {step:.2g} points. The "
            "standard errors above count the examples drawn, not the seeds."
        )
    finetuned = {task: results.value("finetuned", task) for task in results.tasks}
    lost = [task for task, value in finetuned.items() if value is not None and value <= 0]
    if lost:
        lines.append(
            f"Finetuned is not above 0 on {', '.join(lost)}: nothing can be normalised by it, and there is no mean of "
            "normalised values."
        )
    lines += filter(None, [unlearned_note(results)])
    if ENSEMBLE in results.variants:
        lines.append("The ensemble is measured in joint label spaces alone, and has no value of a task's own labels.")
    return lines


def standard_error(score: Score | None) -> float | None:
    """Return sqrt(p (1 - p) / n), the standard error of an accuracy p on n examples, as a fraction.

    >>> standard_error(Score("ties", "digits", "accuracy", 0.9, 100))
    0.03
    """
    if score is None or not score.count:
        return None
    return round(math.sqrt(max(0.0, score.value * (1 - score.value)) / score.count), 12)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
