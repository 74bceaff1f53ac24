"""Run folders with made-up results."""

import yaml

from callbacks.curves import Curves
from callbacks.results import Results
from lightning_modules.scores import Score

TASKS = ("digits", "scenes")
LEVELS = {"pretrained": 0.4, "finetuned": 0.8, "ties": 0.6, "knots-ties": 0.7}
DESCRIPTIONS = {
    "pretrained": "the base model, without adapters",
    "finetuned": "each task through its own adapter",
    "ties": "Ties(density=0.2), in Full space",
    "knots-ties": "Ties(density=0.2), in KnOTS space",
}


def make_results(levels=None, seed=0, tasks=TASKS, prints="f", joint=True, described=None, **meta):
    """Results in which every task has the level of its variant, a number or one a task."""
    levels = levels or LEVELS
    scores = []
    for name, level in levels.items():
        each = level if isinstance(level, tuple) else (level,) * len(tasks)
        for task, value in zip(tasks, each, strict=True):
            if name != "ensemble":
                scores.append(Score(name, task, "accuracy", value, 200))
            if joint:
                scores += [Score(name, task, f"joint_hits@{k}", value * (0.8 + k / 50), 200) for k in (1, 3, 5, 10)]
        if joint:
            mean = sum(each) / len(each)
            scores += [Score(name, "all", f"joint_hits@{k}", mean * (0.8 + k / 50), 400) for k in (1, 3, 5, 10)]
    splits = {task: {"train": "a" * 64, "val": "b" * 64, "test": prints * 64} for task in tasks}
    known = {
        "run": "made-up",
        "seed": seed,
        "splits": splits,
        "versions": {"torch": "2.13.0"},
        "seconds": {"test": 9.5},
    }
    described = described or {name: DESCRIPTIONS.get(name, f"what {name} is") for name in levels}
    return Results(tuple(scores), known | meta, "test", described)


def make_config(seed=0, folder="runs/x", rank=16, backbone="tiny-clip", adapters=None, modules=("q_proj", "v_proj")):
    """What a run writes to config.yaml, in short."""
    lora = {"r": rank, "alpha": 16.0, "dropout": 0.1, "target_modules": list(modules)}
    return {
        "seed_everything": seed,
        "trainer": {"default_root_dir": str(folder), "max_epochs": 6, "precision": None, "callbacks": []},
        "model": {
            "class_path": "lightning_modules.ImageClassifier",
            "init_args": {"backbone": backbone, "lora": lora, "adapters": adapters, "seed": None},
        },
        "data": {"class_path": "datamodules.QuickstartDataModule", "init_args": {"num_workers": seed, "seed": None}},
        "overwrite": False,
    }


def write(folder, results, config=None, steps=0):
    """A run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(results.to_json())
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    curves = Curves()
    for step in range(steps):
        curves = curves.record(10 * step, step, [s for s in results.scores if not s.joint])
    if steps:
        (folder / "history.csv").write_text(curves.to_csv())
    return folder


def write_seeds(root, levels, steps=0, **options):
    """A run a seed, ``levels`` a map a seed; return their folders."""
    return [
        write(
            root / f"seed-{seed}", make_results(each, seed), make_config(seed, root / f"seed-{seed}", **options), steps
        )
        for seed, each in enumerate(levels)
    ]


def around(*gaps, ties=0.6):
    """Levels of as many seeds, in which knots-ties is above ties by these gaps."""
    return [LEVELS | {"ties": ties, "knots-ties": ties + gap} for gap in gaps]
