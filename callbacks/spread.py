"""Several runs of the same variants: the mean of each number over the runs, and its spread."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from callbacks.results import REFERENCES, Results, counted, csv_text
from callbacks.results_table import (
    NORMALISED_NOTE,
    joint_columns,
    metrics_note,
    numbers_table,
    own_columns,
    split_to_fit,
    table_width,
    title,
)
from callbacks.statistics import Spread
from mergers.errors import SheetbendError

COLUMNS = ("variant", "task", "metric", "mean", "deviation", "runs")


@dataclass(frozen=True)
class SpreadColumn:
    """One column: its heading, and the spread of each variant that every run has a number of."""

    heading: str
    spreads: Mapping[str, Spread]


def spread_columns(results: Sequence[Results]) -> list[SpreadColumn]:
    """Return each task, mean, normalised mean and joint hits@1 (of each label space) as spreads over the runs.

    Raises:
        SheetbendError: the runs are of different tasks.
    """
    first = results[0]
    odd = next((one for one in results if one.tasks != first.tasks), None)
    if odd is not None:
        raise SheetbendError(
            f"runs {first.meta.get('run')} and {odd.meta.get('run')} have other tasks ({', '.join(first.tasks)}; "
            f"{', '.join(odd.tasks)}); no mean can be taken"
        )
    each = [_columns(one) for one in results]
    found = []
    for heading in each[0]:
        spreads = {}
        for variant in first.variants:
            values = [columns[heading](variant) if heading in columns else None for columns in each]
            if None not in values:
                spreads[variant] = Spread(tuple(values))
        found.append(SpreadColumn(heading, spreads))
    return found


def _columns(results: Results) -> dict:
    columns = {column.heading: column.value for column in own_columns(results)}
    for space in results.spaces:
        words = space.replace("_", " ")
        joint = [column for column in joint_columns(results, "all", space) if column.heading == "hits@1"]
        columns |= {f"{words} {column.heading}": column.value for column in joint}
    return columns


def spread_table(results: Sequence[Results], chosen: Sequence[SpreadColumn] | None = None) -> Table:
    """Return mean ± sample standard deviation over the runs, a row a variant, the best merge of each column in bold."""
    first = results[0]
    chosen = spread_columns(results) if chosen is None else chosen
    notes = [metrics_note(first)] * any(column.heading in first.tasks for column in chosen)
    notes += [NORMALISED_NOTE.format(first.measure)] * any(column.heading == "norm. mean" for column in chosen)
    table = numbers_table(heading_of(results), [column.heading for column in chosen], notes)
    best = [_best(column, first.merged) for column in chosen]
    references = [name for name in first.variants if name in REFERENCES]
    for name in first.variants:
        texts = [f"{column.spreads[name]}" if name in column.spreads else "-" for column in chosen]
        cells = [
            f"[bold]{text}[/bold]" if name in first.merged and text.split(" ")[0] == top else text
            for text, top in zip(texts, best, strict=True)
        ]
        table.add_row(escape(name), *cells, end_section=bool(first.merged) and name in references[-1:])
    return table


def heading_of(results: Sequence[Results]) -> str:
    """Return what the numbers are, in words."""
    seeds = [one.meta.get("seed") for one in results]
    told = len(set(seeds)) == len(seeds) and None not in seeds
    runs = counted(len(seeds), "seed" if told else "run") + (f" ({', '.join(map(str, seeds))})" if told else "")
    what = "mean ± sample standard deviation over" if len(seeds) > 1 else "of"
    return f"{title(results[0])}: {what} {runs}"


def _best(column: SpreadColumn, merged: Sequence[str]) -> str | None:
    """Return the largest mean of a merge, as printed."""
    texts = [f"{100 * column.spreads[name].mean:z.1f}" for name in merged if name in column.spreads]
    return max(texts, key=float, default=None)


def spread_view(results: Sequence[Results], width: int) -> RenderableType:
    """Return one table where it fits into ``width`` characters, else tables that do, one below the other."""

    def fits(chosen: Sequence[SpreadColumn]) -> bool:
        return table_width(spread_table(results, chosen)) <= width

    tables = [spread_table(results, chosen) for chosen in split_to_fit(spread_columns(results), fits)]
    return tables[0] if len(tables) == 1 else Group(*(part for table in tables for part in (table, "")))


def spread_csv(results: Mapping[str, Results]) -> str:
    """Return CSV text of all numbers as fractions: mean, deviation, and a column a run.

    Args:
        results: by the heading of their column.
    """
    first = next(iter(results.values()))
    rows = []
    for column in spread_columns(list(results.values())):
        task = column.heading if column.heading in first.tasks else "all" if "joint" in column.heading else "mean"
        for variant, spread in column.spreads.items():
            metric = first.metric(task) if task in first.tasks else column.heading
            number = (spread.mean, spread.deviation, spread.count, *spread.values)
            rows.append((variant, task, metric, *number))
    return csv_text((*COLUMNS, *results), rows)
