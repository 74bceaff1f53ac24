"""Every merge on every task as a map of colours, for results with more merges than bars can show."""

from collections.abc import Callable

from matplotlib.figure import Figure

from callbacks.plots import GREY, INK, bars, spread
from callbacks.results import REFERENCES, Results

MOST_BARS = 16  # merges beside each other whose bars can be told apart


def each_task(results: Results, *others: Results) -> Figure:
    """Return the value of every variant on every task: as bars, or as a map of colours where merges are many.

    Args:
        results: of one run.
        *others: of other seeds.
    """
    return (bars if len(results.merged) <= MOST_BARS else heatmap)(results, *others)


def heatmap(results: Results, *others: Results) -> Figure:
    """Return a row a variant and a column a task: numbers in %, their shares of ``finetuned`` as colours.

    References stand first, then merges from the best on average to the worst; colours span those of the merges.
    Without ``finetuned``, colours are values.

    Args:
        results: of one run.
        *others: of other seeds; numbers are then means over all.
    """
    runs = (results, *others)

    def over_seeds(of: Callable[[Results], float | None]) -> float:
        return spread([of(run) for run in runs])[0]

    shares = any(run.mean_normalised(name) is not None for run in runs for name in results.merged)
    numbers, shades = {}, {}
    for name in results.variants:
        values = [over_seeds(lambda run: run.value(name, task)) for task in results.tasks]  # noqa: B023
        parts = [over_seeds(lambda run: run.normalised(name, task)) for task in results.tasks]  # noqa: B023
        mean, part = over_seeds(lambda run: run.mean_value(name)), over_seeds(lambda run: run.mean_normalised(name))  # noqa: B023
        numbers[name] = [*values, mean, *([part] if shares else [])]
        shades[name] = [*parts, part, part] if shares else [*values, mean]
    rows = [name for name in results.variants if numbers[name][-1] == numbers[name][-1]]  # not nan, as an ensemble's
    merges = sorted((name for name in rows if name not in REFERENCES), key=lambda name: -shades[name][-1])
    rows = [*(name for name in rows if name in REFERENCES), *merges]
    columns = [*results.tasks, "mean", *(["norm. mean"] if shares else [])]

    figure = Figure(figsize=(2.6 + 0.95 * len(columns), 1.0 + 0.235 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    low = min(shade for name in merges for shade in shades[name])
    high = 100.0 if shares else max(shade for name in rows for shade in shades[name])
    image = axes.imshow([shades[name] for name in rows], aspect="auto", cmap="viridis", vmin=low, vmax=high)
    for row, name in enumerate(rows):
        for column, (number, shade) in enumerate(zip(numbers[name], shades[name], strict=True)):
            ink = "white" if shade < low + 0.55 * (high - low) else INK
            axes.text(column, row, f"{number:.1f}", ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.xaxis.tick_top()
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.spines[:].set_visible(False)
    # White lines set the references and the means apart.
    axes.axhline(len(rows) - len(merges) - 0.5, color="white", linewidth=3)
    axes.axvline(len(results.tasks) - 0.5, color="white", linewidth=3)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, labelsize=8, length=2)
    bar.set_label(f"{results.measure}, " + ("% of finetuned" if shares else "%"), fontsize=9, color=GREY)
    return figure
