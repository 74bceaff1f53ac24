"""What the weights alone say of how tasks will get on: signs, directions and norms, layer by layer."""

from collections.abc import Iterator, Sequence
from typing import Any

from callbacks.interference_plot import interference_plot
from callbacks.results import counted, csv_text
from launch.analysing.output import Finding
from launch.commands.screen import say, table
from mergers import Adapter, SheetbendError
from mergers.adapters import align
from mergers.analysis import Analysis, Pair, PairFacts
from mergers.analysis import analyse as compare

HEADER = ("measure", "layer", "first", "second", "value")


def analyse(adapters: Sequence[Adapter]) -> Finding:
    """Compare the updates of each two tasks.

    Raises:
        SheetbendError: the adapters have no module in common.
    """
    say(
        f"analysis interference: {counted(len(adapters), 'task')}, {counted(len(adapters[0]), 'module')}; "
        "needs neither data nor model"
    )
    found = compare(align(adapters))
    if not found.pairs or not found.pairs[0].modules:
        raise SheetbendError("analysis interference: the adapters have no module in common; nothing to compare")
    return Finding(
        "interference",
        {"interference.csv": csv_text(HEADER, rows(found))},
        interference_plot(found),
        {f"{pair.first}+{pair.second}": _curves(pair) for pair in found.pairs},
        "Interference of each two tasks, over all modules; overlaps by chance in brackets",
        _table(found),
    )


def rows(found: Analysis) -> Iterator[tuple[Any, ...]]:
    """Yield one value a row: of each layer and of all together."""
    for task, modules in found.adapters.items():
        whole = found.norm(task) ** 2
        for module, facts in modules.items():
            yield ("energy", module, task, None, facts.norm**2 / whole if whole else 0.0)
    for pair in found.pairs:
        both = (pair.first, pair.second)
        for module, facts in pair.modules.items():
            for measure, value in _values(facts).items():
                yield (measure, module, *both, value)
        yield ("cosine", "all", *both, pair.cosine)
        yield ("sign_conflict", "all", *both, pair.sign_conflict)
        yield ("weighted_conflict", "all", *both, pair.weighted_conflict)
        for measure in ("inputs", "inputs_by_chance", "outputs", "outputs_by_chance"):
            yield (measure, "all", *both, getattr(pair, measure))


def _values(facts: PairFacts) -> dict[str, float | None]:
    return {
        "sign_conflict": facts.sign_conflict,
        "weighted_conflict": facts.weighted_conflict,
        "inputs": facts.inputs,
        "inputs_by_chance": facts.inputs_by_chance,
        "outputs": facts.outputs,
        "outputs_by_chance": facts.outputs_by_chance,
    }


def _curves(pair: Pair) -> dict[str, list[tuple[int, float]]]:
    """Return each measure over the number of the layer."""
    found: dict[str, list[tuple[int, float]]] = {}
    for index, facts in enumerate(pair.modules.values()):
        for measure, value in _values(facts).items():
            if value is not None and not measure.endswith("by_chance"):
                found.setdefault(f"interference/{measure}", []).append((index, value))
    return found


def _table(found: Analysis) -> Any:
    shown = table("pair", "cosine", "inputs", "outputs", "sign\nconflict", "weighted\nconflict")
    for pair in found.pairs:
        shown.add_row(
            f"{pair.first}, {pair.second}",
            f"{pair.cosine:z.3f}",
            _overlap(pair.inputs, pair.inputs_by_chance),
            _overlap(pair.outputs, pair.outputs_by_chance),
            f"{pair.sign_conflict:.1%}",
            f"{pair.weighted_conflict:.1%}",
        )
    return shown


def _overlap(value: float | None, chance: float | None) -> str:
    return "" if value is None or chance is None else f"{value:.3f} ({chance:.3f})"
