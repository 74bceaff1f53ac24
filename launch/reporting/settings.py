"""What was set in a run, flat, and without what says nothing about its results."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

# By the start of their names: where things go, how they are shown, how fast they are read.
_SILENT = (
    "ckpt_path",
    "data.eval_batch_size",
    "data.num_workers",
    "overwrite",
    "search",
    "seed",
    "seed_everything",
    "seeds",
    "test_after_fit",
    "trainer.callbacks.callbacks.PlainProgress",
    "trainer.callbacks.callbacks.ResultsCallback",
    "trainer.default_root_dir",
    "trainer.enable_",
    "trainer.log_every_n_steps",
    "trainer.logger",
    "trainer.profiler",
)
# A seed of a part stands where that of the run would: with equal test examples it is a seed like any other.
_SEEDS = ("model.seed", "data.seed")
ADAPTERS = "model.adapters"


def flat(config: Mapping[str, Any], seed: int | None = None, adaptation: bool = False) -> dict[str, str]:
    """Return the settings that decide about results, as text by dotted names.

    Args:
        config: of a run, as its YAML file holds it.
        seed: of the run; where a path of adapters names it, ``{seed}`` stands instead.
        adaptation: keep the section ``adaptation``, which other commands pass over.

    >>> model = {"class_path": "m.Model", "init_args": {"lr": 0.1, "adapters": "runs/lora-2/adapters/{task}"}}
    >>> flat({"seed_everything": 2, "model": model}, seed=2)
    {'model': 'm.Model', 'model.lr': '0.1', 'model.adapters': 'runs/lora-{seed}/adapters/{task}'}
    """
    found = {}
    for name, value in _items(config, ""):
        if name in _SEEDS or name.startswith(_SILENT) or (name.startswith("adaptation") and not adaptation):
            continue
        if "MergeCallback" in name:  # results say in one line what each merge is
            continue
        text = _text(value)
        found[name] = without_seed(text, seed) if name.startswith(ADAPTERS) else text
    return found


def without_seed(path: str, seed: int | None) -> str:
    """Return a path in which ``{seed}`` stands for the seed at the end of a folder's name, and behind the word seed.

    >>> without_seed("runs/rank-1/lora-1/x", 1), without_seed("runs/lora-10", 1), without_seed("seed_4/a", None)
    ('runs/rank-{seed}/lora-{seed}/x', 'runs/lora-10', 'seed_{seed}/a')
    """
    path = re.sub(r"(?i)(seed[-_=]?)\d+", r"\1{seed}", path)
    return path if seed is None else re.sub(rf"(?<![^-_=/]){seed}(?=/|$)", "{seed}", path)


def _items(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a configuration; a class is a leaf of its own, whose arguments stand below it."""
    if isinstance(value, Mapping) and "class_path" in value:
        yield prefix, value["class_path"]
        yield from _items(value.get("init_args") or {}, prefix)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _items(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(one, Mapping) and "class_path" in one for one in value):
        for index, one in enumerate(value):
            name = one["class_path"] if isinstance(one, Mapping) and "class_path" in one else str(index)
            yield from _items(one, f"{prefix}.{name}")
    else:
        yield prefix, value


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return str(value)
