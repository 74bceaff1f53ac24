"""What stands in a report, in what order."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from callbacks.results import BY_NAME, ENSEMBLE
from callbacks.results_table import unlearned_note
from callbacks.statistics import SEEDS_TO_CLAIM
from launch.reporting import pictures, tables
from launch.reporting.brief import brief
from launch.reporting.document import Block, Bullets, Code, Document, Heading, Paragraph, Picture, escaped, plain
from launch.reporting.groups import Group
from launch.reporting.published import published_table
from launch.reporting.runs import Run


def document(groups: Sequence[Group], unfinished: Sequence[str], title: str | None = None) -> Document:
    """Return the report.

    Args:
        groups: of runs, each to have a chapter.
        unfinished: what was found and left out, in words.
        title: the heading.
    """
    here = common(groups)
    blocks: list[Block] = [Heading(2, "In brief"), Bullets(tuple(_brief(groups)))]
    blocks += [Heading(2, "Runs"), tables.runs_table(groups, here)]
    if len(groups) > 1:
        blocks += _side_by_side(groups)
    for group in groups:
        prefix = (group.label,) if len(groups) > 1 else ()
        blocks += _chapter(group, prefix)
    blocks += [Heading(2, "Settings"), *(tables.settings_table(group) for group in groups)]
    commands = dict.fromkeys(
        text for group in groups for run in group.runs if (text := run.results.meta.get("command"))
    )
    if commands:
        blocks += [Heading(3, "How to repeat"), Code("\n".join(map(plain, commands)))]
    blocks += [Heading(2, "Data"), *(tables.data_table(group) for group in groups)]
    blocks += [Paragraph("Runs whose fingerprints agree saw the same examples.", small=True)]
    blocks += [Heading(2, "Versions, machine and time"), tables.work_table(groups, here)]
    blocks += [Heading(2, "Read with care"), Bullets(tuple(_cautions(groups, unfinished)))]
    return Document(plain(title or _title(groups, here)), tuple(_with_names_of_their_own(blocks)))


def _with_names_of_their_own(blocks: Sequence[Block]) -> Iterator[Block]:
    """Yield the blocks, with a number to the name of each picture that another has, on any file system."""
    taken: set[str] = set()
    for block in blocks:
        if isinstance(block, Picture):
            stem = block.name.removesuffix(".png")
            names = (f"{stem}{f'_{number}' if number > 1 else ''}.png" for number in range(1, len(taken) + 2))
            block = replace(block, name=next(name for name in names if name.lower() not in taken))
            taken.add(block.name.lower())
        yield block


def common(groups: Sequence[Group]) -> Path:
    """Return the folder that all runs stand in."""
    folders = [run.folder.resolve() for group in groups for run in group.runs]
    return Path(os.path.commonpath([folder.parent for folder in folders]))


def _title(groups: Sequence[Group], here: Path) -> str:
    if len(groups) == 1:
        return f"{groups[0].label}: {_split(groups[0])} results"
    return f"{here.name or 'runs'}: {len(groups)} groups of runs compared"


def _split(group: Group) -> str:
    return {"val": "validation"}.get(group.first.split, group.first.split)


def _brief(groups: Sequence[Group]) -> Iterator[str]:
    for group in groups:
        start = f"*{escaped(group.label)}.* " if len(groups) > 1 else ""
        for line in brief(group):
            yield start + line
            start = ""


def _side_by_side(groups: Sequence[Group]) -> Iterator[Block]:
    yield Heading(2, "Side by side")
    differing = tables.differences(groups)
    if differing is not None:
        yield differing
    data = sorted(task for task in set().union(*(group.first.tasks for group in groups)) if _differs(groups, task))
    if data:
        yield Paragraph(
            f"Not all groups were tested on the same examples of {', '.join(map(escaped, data))}: their numbers are "
            "not averaged with each other, and hardly compare."
        )
    headlines = {group.headline.heading for group in groups}
    if len(headlines) == 1:
        yield tables.beside(groups, groups[0].headline)


def _differs(groups: Sequence[Group], task: str) -> bool:
    return len({tables.examples_of(group.runs[0], task) for group in groups if task in group.first.tasks}) > 1


def _chapter(group: Group, prefix: tuple[str, ...]) -> Iterator[Block]:
    yield Heading(2, group.label if prefix else "Results")
    yield Heading(3, "Each task among its own labels")
    yield tables.own_table(group)
    yield Paragraph(_legend(group), small=True)
    yield from pictures.results_pictures(group, prefix)
    gains = tables.gains_table(group)
    if gains is not None:
        yield Heading(3, "What was learned")
        yield gains
        yield Paragraph(_gains_legend(group), small=True)
    joint = tables.joint_tables(group)
    if joint:
        yield Heading(3, "One label space for all tasks")
        yield from joint
        yield Paragraph(_joint_legend(group), small=True)
    found = published_table(group)
    if found is not None:
        table, notes = found
        yield Heading(3, "Beside published numbers")
        yield table
        yield Paragraph(notes, small=True)
    drawn = pictures.curves_pictures(group, prefix)
    if drawn:
        yield Heading(3, "Over training")
        yield from drawn
    left, more = pictures.found_pictures(group, prefix)
    if left:
        yield Heading(3, "Searches, adaptations and analyses")
        yield from left
        if more:
            yield Paragraph(more, small=True)


def _legend(group: Group) -> str:
    words = f"{group.first.measure.capitalize()} in %; the mean weighs every task the same, whatever its size."
    if "finetuned" in group.variants:
        words += (
            " *norm. mean* divides each task's value by that of *finetuned* of the same run, then averages: 100 means "
            "that merging lost nothing. *finetuned* is each task's adapter on its own."
        )
    words += " Bold: the best merge" + (" of those measured with every seed." if group.seeds > 1 else ".")
    if group.seeds > 1:
        words += (
            f" {tables.LEVEL}: cannot be told from the best; the 95 % interval of the difference, paired over "
            "seeds (Student's t), contains zero."
        )
    else:
        words += " One seed: nothing can be said of the spread."
    return words


def _gains_legend(group: Group) -> str:
    words = (
        "How far each learned merge is above the merge that it started from, in points; the starts themselves stand in "
        "results.json."
    )
    if group.seeds > 1:
        words += f" Seed by seed. {tables.LEVEL}: the 95 % interval of the gain contains zero."
    return words


def _joint_legend(group: Group) -> str:
    words = (
        "*hits@k*, in %: the right label is among the k that score highest when the labels of all tasks compete; over "
        "all examples, and as the mean over tasks."
    )
    if "finetuned" in group.variants:
        words += (
            " \\* An oracle: *finetuned* runs each example through the adapter of the task it belongs to, so it is "
            "told the task. The merged models are not."
        )
    return words


def _cautions(groups: Sequence[Group], unfinished: Sequence[str]) -> Iterator[str]:
    few = [group for group in groups if group.seeds < SEEDS_TO_CLAIM]
    if few:
        which = "" if len(few) == len(groups) else f" in {', '.join(escaped(group.label) for group in few)}"
        least, most = min(group.seeds for group in few), max(group.seeds for group in few)
        seeds = "One seed" if most == 1 else f"{least} to {most} seeds" if least < most else f"{most} seeds"
        yield f"{seeds}{which}: differences under two points are noise; run at least three seeds before ranking."
    if any(group.seeds > 1 for group in groups):
        yield (
            "Intervals tell how much seeds differ, on the same test examples; they do not count that the examples are "
            "a sample too (see the standard errors under Data). Each compares two merges; among many, one in twenty is "
            "off by chance, and the best of many is flattered by having been picked."
        )
    for group in groups:
        yield from _cautions_of(group)
    yield from dict.fromkeys(
        escaped(text) for group in groups for run in group.runs for each in _all(run) for text in _caveats(each)
    )
    for text in unfinished:
        yield f"{escaped(text)}; it is left out."
    unread = [f"{escaped(run.name)}/{escaped(part)}" for group in groups for run in group.runs for part in run.unread]
    if unread:
        more = "" if len(unread) <= 4 else f" and {len(unread) - 4} more"
        yield f"Not tested, and left out: {', '.join(unread[:4])}{more}."


def _cautions_of(group: Group) -> Iterator[str]:
    label = escaped(group.label)
    for kind, words in (
        ("learned", "learned from unlabelled data, which the other merges have not seen"),
        ("searched", "with settings chosen by the labels of validation data, which the other merges did not have"),
    ):
        names = [escaped(name) for name in group.merged if group.kind(name) == kind]
        if names:
            yield f"{label}: {words}: {', '.join(names)}."
    uneven = [escaped(name) for name in group.variants if group.uneven(name)]
    if uneven:
        yield f"{label}: settings of {', '.join(uneven)} differ between the seeds; see Settings."
    if ENSEMBLE in group.variants:
        yield f"{label}: the ensemble is measured in joint label spaces alone, and has no value of a task's own labels."
    if BY_NAME in group.first.spaces:
        yield f"{label}: of the joint label spaces, the published one is that in which tasks keep their own labels."


def _all(run: Run) -> list[Run]:
    return [run, *{part.folder: part for part in run.origins.values()}.values()]


def _caveats(run: Run) -> list[str]:
    found = run.results.meta.get("caveats") or []
    own = [unlearned_note(run.results)] * bool(unlearned_note(run.results))
    return [*own, *(str(text) for text in found)] if isinstance(found, list) else own
