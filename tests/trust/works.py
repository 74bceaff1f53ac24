"""The commands under fault: for each its tiny work, its words, and how to count what it has finished."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from datamodules.vision_tasks import VISION_TASKS
from lightning_modules.adapter_folders import write_adapter
from tests.datamodules.pictures_on_disk import parquet
from tests.hub_stand_in import HubStandIn
from tests.launch.merging import write_adapter as write_small_adapter
from tests.lightning_modules.adapting import lora_clip
from tests.text_stand_ins import word_tokenizer
from tests.trust.server import Job, note
from tests.trust.snapshots import contents

LARGE = 1000  # bytes from which a file counts as large here
COUNTS = {"mnist": {"train": 12, "test": 10}, "dtd": {"train": 3, "test": 5}}
DIGITS = [str(digit) for digit in range(10)]
TEXTURES = VISION_TASKS["dtd"].task.class_names
MODEL = "../clip"  # beside the folder of each run
MERGERS = {
    "mean": {"space": "full", "method": "mean"},
    "knots-ties": {"space": "knots", "method": {"class_path": "mergers.Ties", "init_args": {"density": 0.3}}},
}
CONFIG = {
    "seed_everything": 0,
    "model": {
        "class_path": "lightning_modules.ImageClassifier",
        "init_args": {"backbone": MODEL, "lora": {"r": 4}, "learning_rate": 0.01},
    },
    "data": {
        "class_path": "tests.stand_ins.StandIns",
        "init_args": {"tasks": ["hue", "shade"], "batches_per_epoch": 3},
    },
    "trainer": {
        "accelerator": "cpu",
        "default_root_dir": "run",
        "max_epochs": 3,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "callbacks": [{"class_path": "callbacks.MergeCallback", "init_args": {"mergers": MERGERS}}],
    },
    "adaptation": {"steps": 6, "batch_size": 8, "look_every": 2, "learning_rate": 0.05},
    "search": {"over": {"coefficients": [0.5, 1.0], "density": [0.2, 0.6]}, "strategy": "grid", "at_once": 2},
}


@dataclass(frozen=True)
class Work:
    """A command on tiny work.

    Attributes:
        name: in tables.
        words: of the command line, with paths relative to its folder.
        make: writes what it starts from into a folder.
        setup: ``module:function``, called in its process first; counts what it works on.
        finished: how many units of work a folder shows to be finished, for good; none: they are not counted.
        other: a pattern of names that are left out: what other packages keep for themselves, and what is named by the
            time of its making.
    """

    name: str
    words: tuple[str, ...]
    make: Callable[[Path], None]
    setup: str | None = None
    finished: Callable[[Path], int] | None = None
    other: str = "no name"

    def left(self, folder: Path) -> dict[str, object]:
        """Return what it has left; see `tests.trust.snapshots.contents`."""
        return {name: one for name, one in contents(folder).items() if not re.match(self.other, name)}

    @property
    def slug(self) -> str:
        """The name as part of a path."""
        return re.sub(r"\W+", "-", self.name)

    def job(self, folder: Path, delete: str = "", **fault: object) -> Job:
        """Return the command in a folder, with a fault; ``delete`` is for `tests.trust.disks.delete`."""
        environment = {
            "SHEETBEND_CACHE": str(folder / "cache"),
            "TMPDIR": str(folder / "tmp"),
            "COLUMNS": "160",
            "MPLCONFIGDIR": str(folder.parent / "matplotlib"),
            "TRUST_DELETE": delete,
        }
        return Job(self.words, folder, environment, self.setup, **fault)


def _folder(folder: Path) -> None:
    (folder / "tmp").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))


def _three_adapters(folder: Path) -> None:
    _folder(folder)
    for seed, name in enumerate(("pets", "cars", "food")):
        write_small_adapter(folder / "adapters" / name, seed)


def _merged_before(folder: Path) -> None:
    """An earlier merge of the same name, of other settings."""
    _three_adapters(folder)
    from mergers import Merger, load_adapter, save_merged

    save_merged(Merger(), [load_adapter(folder / "adapters" / name) for name in ("pets", "cars")], folder / "merged")


def _to_prepare(folder: Path) -> None:
    (folder / "tmp").mkdir(parents=True)
    config = {
        "model": {
            "class_path": "tests.prepared_model.PreparedModel",
            "init_args": {"backbone": "openai/clip", "adapters": "lab/adapter"},
        },
        "data": {"class_path": "datamodules.vision.VisionDataModule", "init_args": {"tasks": [*COUNTS]}},
    }
    config["model"]["init_args"]["adapters"] = dict.fromkeys(COUNTS, "lab/adapter")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def hub_with_little(files: Path) -> HubStandIn:
    """Return a hub with a model, an adapter and two data sets, whose files are written to a folder."""
    stand_in, model, adapter = HubStandIn(), files / "model", files / "adapter"
    word_tokenizer().save_pretrained(model)
    (model / "config.json").write_text("{}")
    save_file({"weight": torch.arange(25_000.0)}, model / "model.safetensors")
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    save_file({"weight": torch.arange(2_000.0)}, adapter / "adapter_model.safetensors")
    parquet(files / "mnist", {"train": [i % 10 for i in range(12)], "test": [i % 10 for i in range(10)]}, DIGITS)
    (files / "mnist" / "data").rename(files / "mnist" / "mnist")
    parquet(files / "dtd", {"train": [0, 5, 40], "test": [1, 2, 3, 4, 5]}, TEXTURES, start=100)
    stand_in.repositories = {"openai/clip": model, "lab/adapter": adapter}
    stand_in.repositories |= {"datasets/ylecun/mnist": files / "mnist", "datasets/tanganke/dtd": files / "dtd"}
    return stand_in


def _run_of_random_adapters(folder: Path) -> None:
    """Adapters as ``fit`` leaves them in its run folder."""
    _folder(folder)
    model, _ = lora_clip(str(folder.parents[1] / "clip"), ("hue", "shade"), seed=0)
    for task in model.task_names:
        write_adapter(model.model, task, folder / "run" / "adapters" / task, {}, {})
        config = folder / "run" / "adapters" / task / "adapter_config.json"
        content = json.loads(config.read_text())
        config.write_text(json.dumps(content | {"base_model_name_or_path": MODEL}))


# In the processes of the commands.


def count_steps(folder: Path) -> None:
    """Note each step of training."""
    from lightning_modules import LoRATasks, TestTimeAdaptation

    for kind in (LoRATasks, TestTimeAdaptation):
        _counted(kind, "training_step", lambda module: f"step {module.global_step}")


def count_candidates(folder: Path) -> None:
    """Note each candidate that is measured."""
    from launch.searching.sweep import Sweeper

    whole = Sweeper.sweep

    def sweep(sweeper, candidates, merger_of):
        found = whole(sweeper, candidates, merger_of)
        for candidate in candidates:
            note(f"{candidate.merge} {candidate.values}")
        return found

    Sweeper.sweep = sweep


def hub_of_the_test(folder: Path) -> None:
    """Ask the hub stand-in of the tests, with a cache below the folder; note each large file and each checked task."""
    from huggingface_hub import constants

    import launch.checked_data
    from datamodules.sources import downloads

    address = os.environ["TRUST_HUB"]
    constants.HF_HUB_OFFLINE, constants.ENDPOINT = False, address
    constants.HUGGINGFACE_CO_URL_TEMPLATE = address + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HUB_CACHE = str(folder / "hub")
    constants.DOWNLOAD_CHUNK_SIZE = downloads.RESUMED_FROM = LARGE
    for task, counts in COUNTS.items():
        VISION_TASKS[task] = replace(VISION_TASKS[task], counts=counts)
    go_on, check = downloads._go_on, launch.checked_data.check_task

    def noted(download, file, *rest):
        note(f"file {file.filename}")
        return go_on(download, file, *rest)

    def checked(datamodule, task):
        note(f"task {task.name}")
        return check(datamodule, task)

    downloads._go_on, launch.checked_data.check_task = noted, checked


def count_merges(folder: Path) -> None:
    """Note each adapter that is written."""
    import mergers.output

    whole = mergers.output.save_merged

    def save_merged(merger, adapters, path, **options):
        note(f"{path}")
        return whole(merger, adapters, path, **options)

    mergers.output.save_merged = save_merged


def _counted(kind: type, name: str, what: Callable) -> None:
    whole = getattr(kind, name)

    def counted(self, *args):
        note(what(self))
        return whole(self, *args)

    setattr(kind, name, counted)


# What is finished.


def steps_in(checkpoint: str) -> Callable[[Path], int]:
    """Return what counts the steps that a checkpoint keeps."""

    def finished(folder: Path) -> int:
        path = folder / checkpoint
        return torch.load(path, weights_only=True)["global_step"] if path.is_file() else 0

    return finished


def candidates_in(records: str) -> Callable[[Path], int]:
    """Return what counts the candidates that are kept."""

    def finished(folder: Path) -> int:
        path = folder / records
        return len(json.loads(path.read_text())["candidates"]) if path.is_file() else 0

    return finished


def folders_of(pattern: str) -> Callable[[Path], int]:
    """Return what counts the merges that stand at their place."""
    return lambda folder: len(list(folder.glob(pattern)))


def downloads_and_checks(folder: Path) -> int:
    """Count the large files that have come whole, and the tasks that were found to be right."""
    blobs = [path for path in folder.glob("hub/*/blobs/*") if not path.suffix and path.stat().st_size >= LARGE]
    return len(blobs) + len(list(folder.glob("cache/prepared/*.json")))


HERE = "tests.trust.works"
MERGE = ("merge", "--adapters", *(f"adapters/{name}" for name in ("pets", "cars", "food")), "--output")
KNOTS_TIES = ("--space", "knots", "--method", "ties", "--method.density", "0.3")
CONFIGURED = ("--config", "config.yaml")
WORKS = {
    work.name: work
    for work in (
        Work("merge", (*MERGE, "merged", *KNOTS_TIES), _three_adapters, f"{HERE}:count_merges", folders_of("merged")),
        Work("merge --overwrite", (*MERGE, "merged", *KNOTS_TIES, "--overwrite"), _merged_before),
        Work(
            "merge --seeds",
            (
                *MERGE,
                "merged-{seed}",
                "--space",
                "knots",
                "--transforms",
                "dare",
                "--transforms.drop_rate",
                "0.5",
                "--seeds",
                "0",
                "1",
                "2",
            ),
            _three_adapters,
            f"{HERE}:count_merges",
            folders_of("merged-*"),
        ),
        Work("fit", ("fit", *CONFIGURED), _folder, f"{HERE}:count_steps", steps_in("run/checkpoints/last.ckpt")),
        Work(
            "fit, max_steps at an epoch's end",
            ("fit", *CONFIGURED, "--trainer.max_steps", "12", "--trainer.max_epochs", "-1"),
            _folder,
            f"{HERE}:count_steps",
            steps_in("run/checkpoints/last.ckpt"),
        ),
        Work("fit --seeds", ("fit", *CONFIGURED, "--trainer.max_epochs", "1", "--seeds", "0", "1"), _folder),
        Work("test", ("test", *CONFIGURED), _run_of_random_adapters),
        Work(
            "search",
            ("search", *CONFIGURED),
            _run_of_random_adapters,
            f"{HERE}:count_candidates",
            candidates_in("run/searches/grid/candidates.json"),
        ),
        Work(
            "search, optuna",
            ("search", *CONFIGURED, "--search.strategy", "optuna", "--search.trials", "4"),
            _run_of_random_adapters,
            f"{HERE}:count_candidates",
            candidates_in("run/searches/optuna/candidates.json"),
            r".*/optuna\.journal$",  # a log that is only added to, with times
        ),
        Work(
            "adapt",
            ("adapt", *CONFIGURED),
            _run_of_random_adapters,
            f"{HERE}:count_steps",
            steps_in("run/adaptations/adarank-ta/checkpoints/last.ckpt"),
        ),
        Work(
            "prepare",
            ("prepare", *CONFIGURED, "--mbit", "8"),
            _to_prepare,
            f"{HERE}:hub_of_the_test",
            downloads_and_checks,
            r"cache/tables/|cache/images/keys/|hub/\.locks/|hub/.*(/refs/.*\.tmp|/trees/tmp|/blobs/tmp_|/tmp\w{8}/)",
        ),
    )
}


def start(work: Work, base: Path) -> Path:
    """Return a folder below ``base`` with what a command starts from: at the same place each time, as it was."""
    template, folder = base / "templates" / work.slug, base / "work"
    if not template.exists():
        work.make(template)
    shutil.rmtree(folder, ignore_errors=True)  # but for a folder on which a disk is mounted
    shutil.copytree(template, folder, symlinks=True, dirs_exist_ok=True)
    return folder
