"""The findings in a few sentences; a win is called one only where the seeds bear it."""

from collections.abc import Sequence

from callbacks.results import counted
from callbacks.statistics import SEEDS_TO_CLAIM, Difference
from launch.reporting.document import escaped
from launch.reporting.groups import MEAN, NORMALISED, Group, Measure, hits

BASELINE = "knots-ties"
_STATIC = ("run", "searched")


def brief(group: Group) -> list[str]:
    """Return the findings of one group, a line of Markdown each."""
    measure = group.headline
    order = group.ranking(measure)
    lines = [_ends(group)] if _ends(group) else []
    if not order:
        return [*lines, "No merge was tested."]
    lines = [_best(group, measure, order), *lines]
    free = group.ranking(measure, _STATIC)
    if free and free[0] != order[0]:
        lines.insert(1, "Of the merges that are not learned: " + _lower(_best(group, measure, free)))
    joint = hits(1)
    if group.ranking(joint):
        name = group.ranking(joint)[0]
        lines.append(
            f"In one label space for all tasks, {_bold(name)} is best: {group.spread(joint, name)} % hits@1 "
            f"over all examples.{_next(group, joint, group.ranking(joint))}"
        )
    return lines


def _best(group: Group, measure: Measure, order: Sequence[str]) -> str:
    name = order[0]
    what = "of finetuned, mean over tasks" if measure is NORMALISED else f"mean {group.first.measure}"
    seeds = "one seed" if group.seeds == 1 else f"mean of {group.seeds} seeds ± standard deviation"
    text = f"Best merge: {_bold(name)}, {group.spread(measure, name)} % {what} ({seeds})."
    if name in group.starts:
        text += f" Its gain over its own start: {group.difference(measure, name, group.starts[name]):+} points."
    text += _next(group, measure, order)
    base = baseline(group, measure, order)
    if base is not None and base not in order[:2]:
        text += f" {_against(group.difference(measure, name, base), base)}"
    level = [other for other in order[1:] if group.difference(measure, name, other).apart is False]
    if group.seeds >= SEEDS_TO_CLAIM and level not in ([], order[1:2]):  # the next one has been spoken of
        text += f" {counted(len(level), 'merge')} in all cannot be told from it: {', '.join(map(_bold, level))}."
    return text


def _next(group: Group, measure: Measure, order: Sequence[str]) -> str:
    return f" {_against(group.difference(measure, *order[:2]), order[1])}" if len(order) > 1 else ""


def baseline(group: Group, measure: Measure, order: Sequence[str]) -> str | None:
    """Return the merge that is KnOTS-TIES: by its name, else the best of those described so."""
    if BASELINE in order:
        return BASELINE
    described = [
        name
        for name in order
        if group.description(name).startswith("Ties(") and "), in KnOTS space" in group.description(name)
    ]
    return described[0] if described else None


def _against(difference: Difference, other: str) -> str:
    """Return in words whether the first is better than another, which is not above it."""
    points, name = 100 * difference.mean, _bold(other)  # a merge may be called mean
    above = f"{points:.1f} points above {name}" if points >= 0.05 else f"level with {name}"
    if difference.count == 1:
        return f"It is {above}; one seed cannot tell which is better."
    if difference.constant:
        return f"It is {above} with each of {difference.count} seeds alike, which does not tell which is better."
    low, high = points - 100 * difference.half, points + 100 * difference.half
    interval = f"95 % interval {low:.1f} to {high:.1f}"
    if difference.wins:
        return f"It wins over {name} by {points:.1f} points ({interval}, paired over {difference.count} seeds)."
    few = f"{counted(difference.count, 'seed')}, {SEEDS_TO_CLAIM} are needed to claim a win"
    why = few if difference.count < SEEDS_TO_CLAIM else f"paired over {difference.count} seeds"
    verdict = "no claim" if difference.apart else "too close to tell"
    return f"It is {above}: {verdict} ({interval}; {why})."


def _ends(group: Group) -> str:
    """Return what finetuned and pretrained reach."""
    found = {name: group.spread(MEAN, name) for name in ("finetuned", "pretrained")}
    said = [f"{name} {spread} %" for name, spread in found.items() if spread]
    return f"Mean {group.first.measure} among each task's own labels: {', '.join(said)}." if said else ""


def _bold(name: str) -> str:
    return f"**{escaped(name)}**"


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]
