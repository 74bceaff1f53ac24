"""``sheetbend inspect``: what adapters are, and what merging them would do."""

import csv
import json
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch import cli, interrupts
from launch.commands.adapters import in_words_of_options, load, sources
from launch.commands.words import Parser

if TYPE_CHECKING:
    from rich.console import Console

    from mergers import Adapter
    from mergers.analysis import Analysis

DESCRIPTION = """\
Say what adapters are, and what merging them would do. All numbers are exact.

  sheetbend inspect runs/a runs/b runs/c
"""
EPILOG = """\
what the numbers mean:
  eff. rank      effective rank: exp of the entropy of the squared singular
                 values, which sum to one; the mean of all modules. How many
                 directions an update uses, whatever its rank is
  cosine         of the angle between two updates, each as one long vector:
                 1 the same, 0 unrelated, -1 opposed
  inputs,        overlap of the directions that two updates read from, and
  outputs        write to: the mean squared cosine of the principal angles,
                 0 orthogonal, 1 the same; by chance: what random ones have
  sign conflict  fraction of the entries in which the signs differ: 50 % if
                 unrelated; weighted by the product of the magnitudes
"""
KEPT = "\ninterrupted"


def parser() -> Parser:
    """Return the parser of all options."""
    result = Parser("inspect", "ADAPTER... [options]", DESCRIPTION, EPILOG)
    result.add_argument(
        "adapters",
        nargs="+",
        metavar="ADAPTER",
        help="PEFT folder, hub id or .pt file of KnOTS, with or without NAME= before it",
    )
    result.add_argument("--names", nargs="+", metavar="NAME", help="names of the adapters; the folders' own by default")
    result.add_argument("--base", metavar="CHECKPOINT", help="full checkpoint before training, for full checkpoints")
    result.add_argument("--modules", nargs="+", metavar="NAME", help="take only these modules of full checkpoints")
    result.add_argument("--by-layer", action="store_true", help="show each module too")
    result.add_argument("--csv", metavar="FILE", help="write all numbers of all modules as a table")
    result.add_argument("--json", metavar="FILE", help="write all numbers as JSON")
    result.add_argument("--plot", metavar="FILE.png", help="draw conflicts, overlaps and norms of all modules")
    result.add_argument("--quiet", action="store_true", help="print nothing but errors")
    return result


def run(words: Sequence[str]) -> None:
    """Run the command on its words."""
    options = parser().read(words)
    wanted = sources(options.adapters, getattr(options, "names", None))
    for name in ("csv", "json", "plot"):
        path = Path(getattr(options, name, "."))
        if name in options and (path.is_dir() or not path.parent.is_dir()):
            cli.fail(f"--{name} {path} cannot be written: give a file in a folder that exists")
    with cli.interruptible():
        from mergers.errors import SheetbendError
    if "plot" in options and (Path(options.plot).suffix != ".png" or len(wanted) < 2):
        cli.fail(f"--plot {options.plot}: draws two adapters or more, to a file that ends in .png")
    try:
        _run(options, wanted)
    except SheetbendError as error:
        cli.fail(in_words_of_options(str(error)))
    except KeyboardInterrupt:
        interrupts.stop(KEPT)


def _run(options: Namespace, wanted: Sequence[Any]) -> None:
    from launch.commands.screen import console, progress
    from mergers.adapters import align
    from mergers.analysis import analyse

    screen = console("quiet" in options)
    adapters = load(wanted, getattr(options, "base", None), getattr(options, "modules", None))
    adapters = align(adapters) if len(adapters) > 1 else adapters
    if screen.is_terminal:
        with progress(screen) as report:
            found = analyse(adapters, report)
    else:
        found = analyse(adapters)
    if not screen.quiet:
        show_all(screen, adapters, found, by_layer="by_layer" in options)
    _write(options, adapters, found)


def show_all(screen: "Console", adapters: "Sequence[Adapter]", found: "Analysis", by_layer: bool = False) -> None:
    """Print tables of the adapters and of each two, and what they mean."""
    from launch.commands.merge_screen import base_lines
    from launch.commands.screen import show

    show(screen, _own_table(adapters, found))
    screen.print()
    for line in base_lines(adapters):
        screen.print(line)
    tables = [_pair_table(found)] if _compared(found) else []
    for each in [*tables, *(_layer_tables(found) if by_layer else [])]:
        screen.print()
        show(screen, each)
    screen.print()
    for note in dict.fromkeys(note for adapter in adapters for note in adapter.metadata.get("notes", [])):
        show(screen, f"note: {note}")
    if len({adapter.base_model for adapter in adapters if adapter.base_model}) > 1:
        show(screen, "note: the base models differ; a merge takes that only as two names of one model (--same-base)")
    if found.skipped:
        show(
            screen,
            f"note: {len(found.skipped)} modules are not in all adapters in one shape, and not compared: "
            f"{', '.join(found.skipped[:3])}{' ...' if len(found.skipped) > 3 else ''}",
        )
    for line in meaning(found):
        show(screen, line)


def _compared(found: "Analysis") -> bool:
    """Return whether the adapters have any module in common."""
    return bool(found.pairs and found.pairs[0].modules)


def _own_table(adapters: "Sequence[Adapter]", found: "Analysis") -> Any:
    from launch.commands.merge_screen import adapter_table

    more = {
        "eff. rank": [_number(found.effective_rank(adapter.name), ".1f") for adapter in adapters],
        "norm": [f"{found.norm(adapter.name):.4g}" for adapter in adapters],
        "content": [adapter.content_hash()[:8] for adapter in adapters],
    }
    return adapter_table(adapters, more)


def _pair_table(found: "Analysis") -> Any:
    from launch.commands.screen import table

    columns = ("cosine", "inputs\n(by chance)", "outputs\n(by chance)", "sign\nconflict", "weighted\nconflict")
    result = table("pair", *columns)
    for pair in found.pairs:
        result.add_row(
            f"{pair.first}, {pair.second}",
            _number(pair.cosine, ".3f"),
            _overlap(pair.inputs, pair.inputs_by_chance),
            _overlap(pair.outputs, pair.outputs_by_chance),
            f"{pair.sign_conflict:.1%}",
            f"{pair.weighted_conflict:.1%}",
        )
    return result


def _overlap(value: float | None, chance: float | None) -> str:
    return "" if value is None or chance is None else f"{value:.3f} ({chance:.3f})"


def _layer_tables(found: "Analysis") -> Iterator[Any]:
    """Yield a table of the modules of all adapters, and one of those of all pairs together.

    What all names begin with is yielded before them, and left out of the tables: names are long, and lines are not.
    """
    from launch.commands.screen import table

    names = list(dict.fromkeys(module for modules in found.adapters.values() for module in modules))
    start = _shared_start(names)
    if start:
        yield f"modules of {start.removesuffix('.')}:"
    own = table("module", "adapter", "rank", "eff. rank", "norm", left=2)
    for module in names:
        shown = module.removeprefix(start)
        for name, modules in found.adapters.items():
            if module in modules:
                facts = modules[module]
                own.add_row(shown, name, str(facts.rank), _number(facts.effective_rank, ".1f"), f"{facts.norm:.4g}")
                shown = ""
    yield own
    if _compared(found):
        pairs = table("module", "pair", "cosine", "inputs", "outputs", "signs", "weighted", left=2)
        for module in found.pairs[0].modules:
            shown = module.removeprefix(start)
            for pair in found.pairs:
                row = _pair_row(found, pair, module)
                pairs.add_row(
                    shown,
                    f"{pair.first}, {pair.second}",
                    _number(row["cosine"], ".3f"),
                    _number(row["inputs"], ".3f"),
                    _number(row["outputs"], ".3f"),
                    f"{row['sign_conflict']:.1%}",
                    f"{row['weighted_conflict']:.1%}",
                )
                shown = ""
        yield pairs


def _shared_start(names: Sequence[str]) -> str:
    """Return the parts that all names of modules begin with, but for each one's last.

    >>> _shared_start(["model.layers.0.q_proj", "model.layers.0.v_proj", "model.layers.1.q_proj"])
    'model.layers.'
    """
    above = [name.split(".")[:-1] for name in names]
    same = takewhile(lambda parts: len(set(parts)) == 1, zip(*above, strict=False)) if len(names) > 1 else ()
    return "".join(f"{parts[0]}." for parts in same)


def _pair_row(found: "Analysis", pair: Any, module: str) -> dict[str, Any]:
    """Return the numbers of one module of two adapters, as a table has them."""
    facts = pair.modules[module]
    norms = found.adapters[pair.first][module].norm * found.adapters[pair.second][module].norm
    return {
        "cosine": facts.dot / norms if norms else 0.0,
        "inputs": facts.inputs,
        "outputs": facts.outputs,
        "inputs_by_chance": facts.inputs_by_chance,
        "outputs_by_chance": facts.outputs_by_chance,
        "sign_conflict": facts.sign_conflict,
        "weighted_conflict": facts.weighted_conflict,
    }


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, f"z{form}")  # z: no minus before zero


def meaning(found: "Analysis") -> list[str]:
    """Return what the numbers mean for merging, in a few lines of words."""
    if not found.pairs:
        return ["One adapter by itself; give two or more to see how they get on."]
    if not _compared(found):
        return ["They have no module in common: there is nothing to compare, and nothing that a merge could join."]
    lines = []
    pairs = sorted(found.pairs, key=lambda pair: pair.cosine)
    low, high = pairs[0], pairs[-1]
    if low.cosine < -0.05:
        lines.append(
            f"{low.first} and {low.second} pull against each other (cosine {low.cosine:.2f}): their sum cancels part "
            "of both, and electing signs (Ties) keeps one side of each entry."
        )
    elif high.cosine <= 0.05:
        lines.append(
            "The updates are nearly orthogonal: a sum with coefficient 1 keeps each whole, and a mean shrinks each to "
            f"1/{len(found.adapters)} of it."
        )
    elif low.cosine >= 0.5:
        lines.append("The updates largely agree: a mean keeps most of each, and a sum overshoots.")
    else:
        first, last = f"{low.cosine:.2f}", f"{high.cosine:.2f}"
        lines.append(
            f"The updates agree in part (cosine {first if first == last else f'{first} to {last}'}): a sum overshoots "
            "where they agree, so coefficients below 1 are worth a search."
        )
    lines.append(_meaning_of_overlap(found))
    norms = {name: found.norm(name) for name in found.adapters}
    least, most = min(norms, key=norms.get), max(norms, key=norms.get)
    if norms[least] == 0:
        lines.append(f"{least} changes nothing: its norm is 0.")
    elif norms[most] > 2 * norms[least]:
        lines.append(
            f"{most} is {norms[most] / norms[least]:.1f} times as large as {least} and will dominate; coefficients can "
            "even this out."
        )
    return [line for line in lines if line]


def _meaning_of_overlap(found: "Analysis") -> str:
    """Return what the overlap of subspaces says of alignment."""
    sides = []
    for side in ("inputs", "outputs"):
        known = [p for p in found.pairs if getattr(p, side) is not None]
        if known:
            overlap = sum(getattr(p, side) for p in known) / len(known)
            chance = sum(getattr(p, f"{side}_by_chance") for p in known) / len(known)
            # The share of what chance leaves over.
            sides.append((side, (overlap - chance) / (1 - chance) if chance < 1 else 0.0))
    if not sides:
        return ""
    shared = [side for side, above in sides if above > 0.1]
    if shared:
        return (
            f"They share {' and '.join(shared)} well beyond chance: there the tasks interfere, and an aligned space "
            "(knots, core) brings what they share together."
        )
    return "They hardly share directions beyond chance: little interferes, and an aligned space has little to align."


def _write(options: Namespace, adapters: "Sequence[Adapter]", found: "Analysis") -> None:
    """Write all numbers to the files that were asked for."""
    from mergers.errors import SheetbendError
    from mergers.files import atomic_write

    for name, write in (("json", _write_json), ("csv", _write_csv), ("plot", _write_plot)):
        if name in options:
            path = Path(getattr(options, name))
            try:
                with atomic_write(path) as temporary:
                    write(temporary, adapters, found)
            except OSError as error:
                raise SheetbendError(f"--{name} {path} cannot be written: {error.strerror or error}") from None


def _write_json(path: Path, adapters: "Sequence[Adapter]", found: "Analysis") -> None:
    content = {
        "adapters": [
            {
                "name": adapter.name,
                "source": adapter.metadata.get("path"),
                "base_model": adapter.base_model,
                "dtype": adapter.metadata.get("dtype"),
                "heads": sorted(adapter.heads),
                "norm": found.norm(adapter.name),
                "effective_rank": found.effective_rank(adapter.name),
                "content_hash": adapter.content_hash(),
                "modules": {module: asdict(facts) for module, facts in found.adapters[adapter.name].items()},
            }
            for adapter in adapters
        ],
        "pairs": [asdict(pair) for pair in found.pairs],
        "not_compared": found.skipped,
        "meaning": meaning(found),
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_csv(path: Path, adapters: "Sequence[Adapter]", found: "Analysis") -> None:
    """Write a row for each module of each adapter, and for each module of each pair."""
    names = ("module", "first", "second", "rank", "scale", "norm", "effective_rank", "cosine", "inputs")
    names += ("inputs_by_chance", "outputs", "outputs_by_chance", "sign_conflict", "weighted_conflict")
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, names)
        rows.writeheader()
        for adapter in adapters:
            for module, facts in found.adapters[adapter.name].items():
                rows.writerow({"module": module, "first": adapter.name, **asdict(facts)})
        for pair in found.pairs:
            for module in pair.modules:
                both = {"module": module, "first": pair.first, "second": pair.second}
                rows.writerow({**both, **_pair_row(found, pair, module)})


def _write_plot(path: Path, adapters: "Sequence[Adapter]", found: "Analysis") -> None:
    from callbacks.interference_plot import interference_plot
    from callbacks.plots import png
    from mergers.errors import SheetbendError

    if not _compared(found):
        raise SheetbendError("--plot: the adapters have no module in common; there is nothing to draw")
    path.write_bytes(png(interference_plot(found)))
