"""What is compared: two worlds of fine-tuned models, static merges and learned ones, each a command to run."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergers import SheetbendError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "quickstart.yaml"
CHOSEN = Path(__file__).with_name("chosen.json")

WORLDS = {"lora": "LoRA adapters", "whole": "fully fine-tuned models"}

# The static merge that each start is, by the name of its rows.
STARTS = {"task_arithmetic": "task-arithmetic", "cart": "cart", "tsv": "tsv-m"}


@dataclass(frozen=True)
class Row:
    """A learned merge.

    Attributes:
        name: in tables and folders.
        start: of `AdaRank`.
        learn: of `AdaRank`.
        diversity: of `Adaptation`.
    """

    name: str
    start: str
    learn: str = "both"
    diversity: float = 0.0


_LOSSES = (
    Row("adamerging-ta", "task_arithmetic", "coefficients"),
    Row("adarank-ta", "task_arithmetic"),
    Row("adarank-cart", "cart"),
    Row("adarank-tsv", "tsv"),
)
ROWS = {
    row.name: row
    for one in _LOSSES
    for row in (one, Row(f"{one.name}+d", one.start, one.learn, diversity=1.0))  # with SHOT's term against collapse
}


@dataclass(frozen=True)
class Choice:
    """The settings of a row that are chosen on validation data.

    Attributes:
        coefficient: of the merge, or of the start of a learned one.
        learning_rate: of a learned one; none of a static one.
    """

    coefficient: float
    learning_rate: float | None = None


# A step so small that float32 has no room for it: what is tested after it is the start.
NO_STEP = 1e-30


@dataclass(frozen=True)
class Job:
    """A command, and what is there when it has ended well.

    Attributes:
        name: of its log.
        words: what follows ``python``.
        output: a file or folder.
    """

    name: str
    words: tuple[str, ...]
    output: Path


@dataclass(frozen=True)
class Plan:
    """Where everything is, and how long is adapted.

    Attributes:
        folder: of all runs; gets ``<world>-<seed>``, run folders.
        steps: of an adaptation.
        config: of the fit of adapters; models without adapters are trained on its data too.
    """

    folder: Path
    steps: int = 200
    config: Path = CONFIG

    def run_folder(self, world: str, seed: int) -> Path:
        """Return the run folder of one world and seed."""
        return self.folder / f"{world}-{seed}"

    def common(self, world: str, seed: int) -> list[str]:
        """Return the options that every command on the models of one world and seed has."""
        run = self.run_folder(world, seed)
        options = ["--config", str(self.config), "--seed_everything", str(seed), "--trainer.default_root_dir", str(run)]
        return options + (["--model.adapters", f"{run}/models/{{task}}"] if world == "whole" else [])

    def training(self, world: str, seed: int) -> Job:
        """Return what fine-tunes the models of one world and seed."""
        name, run = f"{world}-{seed}", self.run_folder(world, seed)
        if world == "whole":
            script = ROOT / "examples" / "adaptation" / "finetune_whole.py"
            words = [str(script), "--config", str(self.config), "--seed", str(seed), "--output", f"{run}/models"]
            return Job(name, tuple(words), run / "models")
        words = [_script("fit"), *self.common(world, seed), "--test_after_fit", "false", "--trainer.callbacks", "[]"]
        return Job(name, tuple(words), run / "adapters")

    def static_test(self, world: str, seed: int, coefficients: dict[str, list[float]]) -> Job:
        """Return what tests the static merges, each with several coefficients, beside what they are made of."""
        words = [_script("test"), *self.common(world, seed), "--trainer.callbacks", callbacks(world, coefficients)]
        return Job(f"{world}-{seed}-static", tuple(words), self.run_folder(world, seed) / "results.json")

    def adaptation(self, world: str, seed: int, row: Row, choice: Choice, on: str = "test", name: str = "") -> Job:
        """Return what learns a merge; on the test split, what tests it too.

        Args:
            world: of the models.
            seed: of the models, and of the order of examples.
            row: what is learned.
            choice: with which settings.
            on: the split whose unlabelled examples are used.
            name: of the result; that of the row by default.
        """
        name = name or row.name
        steps = 1 if choice.learning_rate == NO_STEP else self.steps
        settings = {
            "name": name,
            "start": row.start,
            "learn": row.learn,
            "diversity": row.diversity,
            "coefficient": choice.coefficient,
            "learning_rate": choice.learning_rate,
            "steps": steps,
            "look_every": max(1, steps // 3),  # looks cost time, which is measured
            "adapt_on": on,
        }
        words = [_script("adapt"), *self.common(world, seed), "--trainer.callbacks", "[]"]
        words += [word for key, value in settings.items() for word in (f"--adaptation.{key}", f"{value}")]
        words += [] if on == "test" else ["--test_after_fit", "false"]
        file = "results.json" if on == "test" else "learned.safetensors"
        return Job(f"{world}-{seed}-{name}", tuple(words), self.adaptation_folder(world, seed, name) / file)

    def adaptation_folder(self, world: str, seed: int, name: str) -> Path:
        """Return what `sheetbend adapt` writes to."""
        return self.run_folder(world, seed) / "adaptations" / name

    def stages(self, worlds: Iterable[str], seeds: Iterable[int], chosen: "Chosen") -> list[list[Job]]:
        """Return all commands; those of one list need what the lists before it write."""
        pairs = [(world, seed) for world in worlds for seed in seeds]
        merges = [
            job
            for world, seed in pairs
            for job in (
                self.static_test(world, seed, static_coefficients(chosen[world])),
                *(self.adaptation(world, seed, row, choice) for row, choice in starts(world, chosen[world])),
                *(self.adaptation(world, seed, row, chosen[world][row.name]) for row in ROWS.values()),
            )
        ]
        return [[self.training(world, seed) for world, seed in pairs], merges]


Chosen = dict[str, dict[str, Choice]]


def _script(command: str) -> str:
    return str(ROOT / "launch" / f"{command}.py")


# Static merges.


def static_methods(world: str) -> tuple[str, ...]:
    """Return the static merges of one world; KnOTS is for low-rank updates."""
    return ("task-arithmetic", "cart", "tsv-m", *(["knots-ties"] if world == "lora" else []))


def static_name(method: str, coefficient: float) -> str:
    """Return the name of a static merge with a coefficient."""
    return f"{method}-{coefficient:g}"


def start_of(world: str, row: Row, choice: Choice) -> str:
    """Return the name of the row that a learned merge starts from.

    It is a static merge, but for CART and TSV of whole models: these decompose every matrix, AdaRank those of attention
    and MLP alone, and sums embeddings and the projection as they are.
    """
    name = static_name(STARTS[row.start], choice.coefficient)
    return name if world == "lora" or row.start == "task_arithmetic" else f"start-{name}"


def starts(world: str, chosen: dict[str, Choice]) -> list[tuple[Row, Choice]]:
    """Return what is adapted without a step, for the starts that are no static merge."""
    found = {start_of(world, row, chosen[name]): (row.start, chosen[name].coefficient) for name, row in ROWS.items()}
    return [
        (Row(name, start), Choice(coefficient, NO_STEP))
        for name, (start, coefficient) in found.items()
        if name.startswith("start-")
    ]


def static_coefficients(chosen: dict[str, Choice]) -> dict[str, list[float]]:
    """Return the coefficients of each static merge: the best on validation data, and where learned ones start."""
    values = {name: [choice.coefficient] for name, choice in chosen.items() if name not in ROWS}
    for row in ROWS.values():
        values[STARTS[row.start]].append(chosen[row.name].coefficient)
    return {name: sorted(set(of_name)) for name, of_name in values.items()}


def merger(world: str, method: str, coefficient: float) -> dict[str, Any]:
    """Return the configuration of a static merge, with the settings of AdaRank's starts.

    The space of CART is that in which low-rank updates have the directions that AdaRank gives masks.
    """
    cart = {"class_path": "mergers.Cart", "init_args": {"scaling": coefficient, "rounding": "down"}}
    ties = {"class_path": "mergers.Ties", "init_args": {"density": 0.2}}
    return {
        "task-arithmetic": {"space": "full", "method": "task_arithmetic", "coefficients": coefficient},
        "cart": {"space": "core" if world == "lora" else "full", "method": cart},
        "tsv-m": {"space": "full", "method": "tsv", "coefficients": coefficient},
        "knots-ties": {"space": "knots", "method": ties, "coefficients": coefficient},
    }[method]


def callbacks(world: str, coefficients: dict[str, list[float]]) -> str:
    """Return ``trainer.callbacks`` that test the static merges, as JSON."""
    mergers = {
        static_name(method, value): merger(world, method, value)
        for method, values in coefficients.items()
        for value in values
    }
    return json.dumps([{"class_path": "callbacks.MergeCallback", "init_args": {"mergers": mergers}}])


# What was chosen.


def read_chosen(worlds: Sequence[str], path: Path = CHOSEN) -> Chosen:
    """Return the settings that ``compare.py --search`` has chosen.

    Raises:
        SheetbendError: it has not, or for other rows.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        chosen = {
            world: {row: Choice(one["coefficient"], one.get("learning_rate")) for row, one in content[world].items()}
            for world in content
        }
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise SheetbendError(f"{path} is damaged ({error}); make it again with --search") from None
    for world in worlds:
        missing = [name for name in (*ROWS, *static_methods(world)) if name not in chosen.get(world, {})]
        if missing:
            raise SheetbendError(
                f"{path} has no settings of {missing[0]} for {world}; choose them first with --search --worlds {world}"
            )
    return chosen
