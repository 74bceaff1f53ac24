"""``sheetbend merge``: adapters in, one adapter or a full model out."""

import errno
import os
import shutil
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from launch import cli, interrupts
from launch.commands.adapters import Source, in_words_of_options, load, local_paths, sources
from launch.commands.seeded import check_options, merge_each
from launch.commands.words import Layer, Parser, as_words, file_words, flag, spelled, split_steps, stacked, whole_number

if TYPE_CHECKING:
    from mergers import Merger
    from mergers.preflight import Estimate

DESCRIPTION = """\
Merge adapters into one adapter, or into a full model, without a GPU or data.

  sheetbend merge --adapters runs/a runs/b --space knots --method ties \\
      --method.density 0.3 --output merged
  sheetbend merge --adapters runs/a runs/b --preset knots-ties --dry-run
"""
DTYPES = ("float32", "float16", "bfloat16")
KEPT = "\ninterrupted: nothing was written; the same command starts again"
OUT_OF_MEMORY = (
    "out of memory; nothing was written. --dry-run says what the merge needs; fewer threads need less "
    "(OMP_NUM_THREADS=1)"
)


def parser(epilog: str = "") -> Parser:
    """Return the parser of all options; steps are listed for the help, but read by `split_steps`."""
    result = Parser("merge", "--adapters ADAPTER... --output FOLDER [options]", DESCRIPTION, epilog)
    inputs = result.add_argument_group("what is merged")
    inputs.add_argument(
        "--adapters",
        nargs="+",
        metavar="ADAPTER",
        help="PEFT folders, hub ids (org/name, org/name@revision) or .pt files of KnOTS, each with or without NAME= "
        "before it",
    )
    inputs.add_argument("--names", nargs="+", metavar="NAME", help="names of the tasks; the folders' own by default")
    inputs.add_argument(
        "--base",
        metavar="CHECKPOINT",
        help="full checkpoint before training: adapters may then be full checkpoints, of which the difference is taken",
    )
    inputs.add_argument(
        "--modules", nargs="+", metavar="NAME", help="take only these modules of full checkpoints, by their names' ends"
    )
    inputs.add_argument(
        "--missing",
        choices=("error", "zero"),
        help="modules that some adapters lack are an error (default), or count as zero there",
    )
    flag(inputs, "same-base", "accept different names of the base model")
    how = result.add_argument_group("how", "names and fields are listed below")
    how.add_argument(
        "--preset", metavar="NAME", help="a whole merge by its name, such as knots-ties; options change it"
    )
    how.add_argument("--space", metavar="NAME", help="basis in which updates are merged (default: full)")
    how.add_argument("--method", metavar="NAME", help="what merges them (default: mean)")
    how.add_argument(
        "--transforms",
        metavar="NAME",
        help="what changes each task's coordinates before; may be repeated, each with its fields after it",
    )
    how.add_argument("--finish", metavar="NAME", help="what changes the merged coordinates after, or none")
    how.add_argument(
        "--coefficients",
        nargs="+",
        metavar="C",
        help="one number, one a task in their order, or NAME=NUMBER for each task (default: 1)",
    )
    how.add_argument("--for-task", metavar="TASK", help="make this task's own model, where the method has one")
    out = result.add_argument_group("what comes out")
    out.add_argument("--output", metavar="FOLDER", help="new folder for the result")
    out.add_argument(
        "--seeds",
        type=whole_number,
        nargs="+",
        metavar="SEED",
        help="merge once a seed, which stands for {seed} in adapters and --output and seeds transforms that draw",
    )
    out.add_argument(
        "--rank", type=whole_number, metavar="K", help="keep the best approximation of this rank (default: exact)"
    )
    out.add_argument("--into", metavar="FOLDER", help="full model to add the result to; --output is then a full model")
    out.add_argument("--dtype", choices=DTYPES, help="of the saved factors (default: the adapters' own)")
    flag(out, "overwrite", "let --output be an earlier merge, which is replaced")
    work = result.add_argument_group("the work")
    flag(work, "dry-run", "say what would be done and what it would take, and stop")
    flag(work, "quiet", "print errors only")
    work.add_argument("--device", metavar="DEVICE", help="where to compute, such as cuda (default: cpu)")
    work.add_argument(
        "--cache",
        choices=("true", "false"),
        help="keep alignments on disk, for the next merge of the same adapters (default: true); see sheetbend cache",
    )
    work.add_argument("--config", "-c", metavar="FILE", action="append", help="YAML file of the same settings")
    flag(work, "print-config", "print all settings as such a file, and stop")
    return result


def run(words: Sequence[str]) -> None:
    """Run the command on its words."""
    words = [spelled(word) for word in words]
    if "-h" in words or "--help" in words:
        from launch.commands.steps import help_of_steps

        parser(help_of_steps()).parse_args(["--help"])
    own = split_steps(words)
    options = parser().read(own.rest, _field_names())
    layers = [split_steps(file_words(path)) for path in getattr(options, "config", [])]
    options = parser().read([word for layer in [*layers, own] for word in layer.rest], _field_names())
    _require(options)
    if "seeds" in options:
        check_options(options, [*layers, own])
    with cli.interruptible():
        import mergers.output  # noqa: F401  torch takes seconds
        from mergers.errors import SheetbendError
    try:
        if "preset" in options:
            layers.insert(0, split_steps(preset_words(options.preset)))
        _run(options, stacked([*layers, own]))
    except SheetbendError as error:
        cli.fail(in_words_of_options(str(error)))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        cli.fail(OUT_OF_MEMORY)
    except KeyboardInterrupt:
        interrupts.stop(KEPT)


def _field_names() -> list[str]:
    from launch.commands.steps import field_names

    return list(field_names())


def _require(options: Namespace) -> None:
    """Refuse what is incomplete before anything is imported."""
    shown = getattr(options, "print_config", False)
    if "adapters" not in options and not shown:
        cli.fail("--adapters missing; give two or more folders of adapters, or hub ids")
    if "output" not in options and not getattr(options, "dry_run", False) and not shown:
        cli.fail("--output missing; give a new folder for the result, or --dry-run to see what it would take")
    if "modules" in options and "base" not in options:
        cli.fail("--modules takes a part of full checkpoints; give the one before training: --base CHECKPOINT")


def preset_words(name: str) -> list[str]:
    """Return the steps of a preset as words."""
    from mergers.presets import preset

    return as_words(settings_of(preset(name)))


def settings_of(merger: "Merger") -> dict[str, Any]:
    """Return a merge as plain values, as a YAML file has them."""
    steps = {
        "space": as_values(merger.space),
        "method": as_values(merger.method),
        "transforms": [as_values(transform) for transform in merger.transforms],
        "finish": None if merger.finish is None else as_values(merger.finish),
    }
    given = {option: step for option, step in steps.items() if step}
    return given if merger.coefficients == 1.0 else {**given, "coefficients": merger.coefficients}


def as_values(part: Any) -> dict[str, Any]:
    """Return a step of a merge as plain values: its class and fields."""
    package = type(part).__module__.split(".")[0]
    path = package if package == "mergers" else type(part).__module__
    values = {field.name: getattr(part, field.name) for field in fields(part)} if is_dataclass(part) else {}
    return {"class_path": f"{path}.{type(part).__name__}", **({"init_args": values} if values else {})}


def _coefficients(words: Sequence[str] | None) -> Any:
    """Return one number, a list, or a map from task to number."""
    if words is None:
        return 1.0
    pairs = [word.rpartition("=") for word in words]
    named = [name for name, equals, _ in pairs if equals]
    try:
        numbers = [float(number) for _, _, number in pairs]
    except ValueError:
        wrong = next(number for _, _, number in pairs if not _is_number(number))
        cli.fail(f"--coefficients holds {wrong!r}; give one number, one a task, or NAME=NUMBER for each task")
    if named and len(named) != len(numbers):
        cli.fail("--coefficients has numbers with and without a name; give NAME=NUMBER for each task, or no names")
    twice = next((name for index, name in enumerate(named) if name in named[:index]), None)
    if twice is not None:
        cli.fail(f"--coefficients names {twice!r} twice; give one number for each task")
    if named:
        return dict(zip(named, numbers, strict=True))
    return numbers[0] if len(numbers) == 1 else numbers


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _run(options: Namespace, layer: Layer) -> None:
    from launch.commands.steps import build_merger

    merger = build_merger(layer, _coefficients(getattr(options, "coefficients", None)))
    if getattr(options, "print_config", False):
        print(_as_yaml(options, merger), end="")
        return
    if "seeds" in options:
        merge_each(options, merger, _checked, _merge)
    else:
        _merge(options, merger, _checked(options))


def _checked(options: Namespace) -> list[Source]:
    """Return the adapters' names and places; refuse an output that cannot be written."""
    wanted = sources(options.adapters, value_of(options, "names"))
    if "output" in options:
        inputs = local_paths(wanted, value_of(options, "into"), value_of(options, "base"))
        check_output(Path(options.output), inputs, value_of(options, "overwrite", False))
    return wanted


def _merge(options: Namespace, merger: "Merger", wanted: Sequence[Source]) -> None:
    output = Path(options.output) if "output" in options else None
    _Merge(options, merger, wanted, output).run()


def value_of(options: Namespace, name: str, default: Any = None) -> Any:
    """Return the value of an option, or a default where it was not given."""
    return getattr(options, name, default)


def _as_yaml(options: Namespace, merger: "Merger") -> str:
    """Return all settings as a YAML file that reads back as the same."""
    import yaml

    given = {name: value for name, value in vars(options).items() if name not in ("config", "print_config", "preset")}
    given["coefficients"] = merger.coefficients
    return yaml.safe_dump({**given, **settings_of(merger)}, sort_keys=False, default_flow_style=None)


def check_output(output: Path, inputs: Sequence[Path], overwrite: bool) -> None:
    """Refuse a folder that cannot be written, or that would be lost, before anything is read."""
    from mergers.output import check_target
    from mergers.output.key import key_of
    from mergers.output.summary import MERGE_FILE

    if not overwrite and (output / MERGE_FILE).exists() and key_of(output) is None:
        _refuse_earlier(output)
    check_target(output, inputs)
    nearest = next(folder for folder in output.absolute().parents if os.path.lexists(folder))
    if not nearest.is_dir():
        cli.fail(f"--output {output} lies below {nearest}, which is a file; give another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        cli.fail(f"--output {output} cannot be made: {nearest} may not be written; give another folder")


def _refuse_earlier(output: Path) -> NoReturn:
    cli.fail(f"{output} holds an earlier merge; give --overwrite to replace it, or another --output")


class _Merge:
    """One run of the command, from the adapters' names to the summary."""

    def __init__(self, options: Namespace, merger: "Merger", wanted: Sequence[Any], output: Path | None) -> None:
        import torch

        from launch.commands.screen import console

        self.merger = merger
        self.wanted = wanted
        self.output = output
        self.rank = value_of(options, "rank")
        self.into = value_of(options, "into")
        self.dtype = getattr(torch, options.dtype) if "dtype" in options else None
        self.options = options
        self.for_task = value_of(options, "for_task")
        self.same_base = value_of(options, "same_base", False)
        self.missing = value_of(options, "missing", "error")
        self.device = _device(value_of(options, "device"))
        self.cached = merger.space.costly and value_of(options, "cache", "true") == "true"
        self.screen = console(value_of(options, "quiet", False))

    def run(self) -> None:
        """Read the adapters, say what is to be done, do it, and say what came of it."""
        from launch.commands import merge_screen
        from mergers.adapters import align
        from mergers.output import require_savable

        base, modules = value_of(self.options, "base"), value_of(self.options, "modules")
        self.adapters = load(self.wanted, base, modules, linear=bool(modules) and self.into is None)
        aligned = align(self.adapters, self.missing)
        self.merger.check(aligned, same_base=self.same_base)
        require_savable(self.merger, aligned, self.rank, self.into, self.dtype)
        self._check_into(aligned)
        if self._finished(aligned):
            self.screen.print(f"{self.output} is finished and unchanged; --overwrite repeats it", soft_wrap=True)
            return
        estimate = None
        if not self.screen.quiet:
            estimate = self._estimate(aligned)
            merge_screen.preflight(self.screen, self, aligned, estimate)
        if value_of(self.options, "dry_run", False):
            self.screen.print("dry run: nothing was written")
            return
        self._check_space(aligned, estimate)
        started = time.perf_counter()
        summary = self._save()
        merge_screen.summary(self.screen, summary, aligned, time.perf_counter() - started)

    def dtype_of(self, adapters: Sequence[Any]) -> Any:
        """Return the dtype of the saved factors: as asked for, or the one that all adapters have, else float32."""
        import torch

        known = {adapter.metadata.get("dtype") for adapter in adapters}
        own = known.pop() if len(known) == 1 else None
        return self.dtype or (getattr(torch, own) if own in DTYPES else torch.float32)

    def _finished(self, aligned: Sequence[Any]) -> bool:
        """Return whether this very merge is there, and need not be repeated; refuse to replace another unasked."""
        from mergers.output.folder import key_for
        from mergers.output.key import key_of
        from mergers.workshops import remove_abandoned

        there = None if self.output is None else key_of(self.output)
        if self.output is not None:
            remove_abandoned(
                self.output.absolute().parent
            )  # of a merge that was killed when it was as good as finished
        if there is None or value_of(self.options, "overwrite", False):
            return False
        if there != key_for(self.merger, aligned, self.rank, self.into, self.dtype, self.for_task):
            _refuse_earlier(self.output)
        return True

    def _estimate(self, adapters: Sequence[Any]) -> "Estimate":
        from mergers.preflight import estimate

        return estimate(self.merger, adapters, self.rank, self.into, self.dtype_of(adapters))

    def _check_into(self, adapters: Sequence[Any]) -> None:
        """Refuse a full model that lacks a module, before the work."""
        if self.into is None:
            return
        from mergers.adapters.common import common_facts
        from mergers.output.model_folder import find_places

        shapes = {module: update.shape for module, update in adapters[0].items()}
        find_places(self.into, shapes, common_facts(adapters)["metadata"])

    def _check_space(self, adapters: Sequence[Any], estimate: "Estimate | None") -> None:
        """Refuse a disk that cannot hold the result, as far as its size is known: a full model's is."""
        if self.into is None or estimate is None:
            return
        nearest = next(folder for folder in self.output.absolute().parents if folder.exists())
        free = shutil.disk_usage(nearest).free
        if free < estimate.written:
            from launch.commands.screen import size

            cli.fail(
                f"--output {self.output} takes {size(estimate.written)}, but its disk has {size(free)} free; give "
                "another folder"
            )

    def _save(self) -> Any:
        from launch.commands.screen import progress
        from mergers.cache import AlignmentCache
        from mergers.errors import SheetbendError
        from mergers.output import save_merged

        encode = AlignmentCache().encoder(self.merger.space) if self.cached else None
        try:
            with progress(self.screen) as report:
                return save_merged(
                    self.merger,
                    self.adapters,
                    self.output,
                    rank=self.rank,
                    base_model=self.into,
                    dtype=self.dtype,
                    same_base=self.same_base,
                    missing=self.missing,
                    encode=encode,
                    progress=report,
                    device=self.device,
                    for_task=self.for_task,
                )
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                problem = "no space is left on its disk; nothing was written, give another folder"
            else:
                problem = f"{error.strerror or error}; nothing was written"
            raise SheetbendError(f"--output {self.output}: {problem}") from None


def _device(name: str | None) -> Any:
    """Return the device of that name, or None."""
    if name is None:
        return None
    import torch

    try:
        torch.ones(1, device=name).item()  # the device "meta" holds no values
    except Exception as error:  # torch has a reason of its own for each kind of device
        reason = " ".join(str(error).split()).partition(". ")[0]
        cli.fail(f"--device {name} cannot be used ({reason}); leave it out to compute on the CPU")
    return torch.device(name)
