"""Configurations of every command, which a stranger wrote."""

import contextlib
import copy
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from launch.lightning_cli import SheetbendCLI
from tests.trust.fuzzing.adapters import honest
from tests.trust.fuzzing.harness import Sandbox, command
from tests.trust.fuzzing.kinds import Kind, Target, write
from tests.trust.fuzzing.mutate import at, places, strange
from tests.trust.fuzzing.yamls import mutated_yaml

ROOT = Path(__file__).resolve().parents[3]
MERGE = {
    "adapters": ["pets", "cars"],
    "output": "merged",
    "space": {"class_path": "mergers.KnOTS", "init_args": {"concatenate": "inputs"}},
    "method": {"class_path": "mergers.Ties", "init_args": {"density": 0.3}},
    "transforms": [{"class_path": "mergers.Dare", "init_args": {"drop_rate": 0.2, "seed": 1}}],
    "finish": "iso",
    "coefficients": {"pets": 0.3, "cars": 0.7},
    "rank": 2,
    "quiet": True,
}
COMMANDS = ("fit", "test", "validate", "search", "adapt", "analyse")


@cache
def quickstart() -> dict[str, Any]:
    """Return the configuration that comes with Sheetbend, with an analysis too."""
    tree = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    mergers = tree["trainer"]["callbacks"][0]["init_args"]["mergers"]  # each takes a third of a second to read
    tree["trainer"]["callbacks"][0]["init_args"]["mergers"] = {name: mergers[name] for name in ("mean", "dare-ties")}
    callback = {
        "class_path": "lightning.pytorch.callbacks.LearningRateMonitor",
        "init_args": {"logging_interval": "step"},
    }
    tree["trainer"]["callbacks"].append(callback)
    tree["trainer"]["logger"] = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}}
    tree["trainer"] |= {"accelerator": "cpu", "devices": 1, "plugins": None, "strategy": "auto", "profiler": None}
    tree["model"]["init_args"]["adapters"] = None
    return tree | {"analysis": {"kinds": ["cka"]}, "seeds": None, "overwrite": False, "test_after_fit": True}


@cache
def own_data() -> dict[str, Any]:
    """Return a configuration of one's own tables and another model."""
    table = {"path": "reviews.csv", "text": "review", "label": "mood", "class_names": ["good", "bad"], "val": 0.1}
    return {
        "model": {
            "class_path": "lightning_modules.SequenceClassifier",
            "init_args": {"backbone": "google-bert/bert-base-uncased", "lora": {"target_modules": ["query"]}},
        },
        "data": {"class_path": "datamodules.TextTableDataModule", "init_args": {"tables": {"mood": table}}},
        "trainer": {"default_root_dir": "runs/own", "max_epochs": 1, "callbacks": None},
        "search": {"over": {"coefficients": [0.1, 0.2]}, "of": {"mean": {"space": ["full"]}}, "strategy": "grid"},
    }


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    with contextlib.chdir(folder):
        yield


def only_parsed(sandbox: Sandbox, *words: object) -> Target:
    """Return a target that reads a configuration and builds all that it names, but begins no work."""

    def run() -> None:
        with _inside(sandbox.output), patch.object(SheetbendCLI, "_run_subcommand", lambda *_: None):
            command(*words)()

    return run


def _runs(rng: random.Random, sandbox: Sandbox) -> Target:
    tree = copy.deepcopy(rng.choice([quickstart(), quickstart(), own_data()]))
    if rng.random() < 0.25:  # where a value may be anything
        keys = rng.choice(
            [keys for keys in places(tree) if "over" in keys or "of" in keys or "mergers" in keys] or [()]
        )
        if keys:
            at(tree, keys[:-1])[keys[-1]] = strange(rng, str(sandbox.outside))
    content = mutated_yaml(rng, tree, str(sandbox.outside))
    path = write(sandbox.inputs / "config.yaml", content)
    return only_parsed(sandbox, rng.choice(COMMANDS), "--config", path)


def _merges(rng: random.Random, sandbox: Sandbox) -> Target:
    for seed, name in enumerate(("pets", "cars")):
        honest(sandbox.output / name, seed)
    path = write(sandbox.inputs / "merge.yaml", mutated_yaml(rng, MERGE, str(sandbox.outside)))

    def run() -> None:
        with _inside(sandbox.output):
            command("merge", "--config", path, "--output", sandbox.output / "merged")()

    return run


KINDS = (
    Kind("merge-config", "YAML of sheetbend merge, which is then run", 1200, 40, _merges),
    Kind(
        "run-config",
        "YAML of fit, test, validate, search, adapt and analyse: read, and all it names built",
        600,
        6,
        _runs,
        60,
    ),
)
