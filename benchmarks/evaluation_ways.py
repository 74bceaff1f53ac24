"""Ways to test merges, each in a process of its own: a plain loop, several sweeps, the forward passes alone.

A script that `evaluation_speed` starts; it prints one line of JSON at its end.
"""

import contextlib
import copy
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def clock() -> tuple[float, float]:
    """Return the time of the wall and of the processor, of all threads."""
    return time.perf_counter(), time.process_time()


START = clock()


def since(start: tuple[float, float]) -> list[float]:
    """Return both since ``start``."""
    return [now - then for now, then in zip(clock(), start, strict=True)]


class Plain:
    """A test in plain PyTorch: one model at a time, and a pass over the data for each.

    Args:
        specification: what `evaluation_speed.Bench` says of the case.
    """

    def __init__(self, specification: dict[str, Any]):
        import torch
        from transformers import CLIPVisionModelWithProjection

        from mergers import load_adapter

        self.torch, self.own = torch, specification
        self.tasks: list[str] = specification["tasks"]
        self.folder, self.model = Path(specification["folder"]), Path(specification["model"])
        processor = json.loads((self.model / "preprocessor_config.json").read_text())
        self.mean, self.std = (torch.tensor(processor[f"image_{name}"]).view(1, 3, 1, 1) for name in ("mean", "std"))
        self.base = CLIPVisionModelWithProjection.from_pretrained(self.model).eval()
        self.side = self.base.config.image_size
        self.adapters = [load_adapter(self.folder / "adapters" / task) for task in self.tasks]
        quickstart = specification["case"] == "quickstart"
        self.sets, names, templates = (_quickstart if quickstart else _pictures)(self, specification)
        self.heads = {task: self._head(names[task], templates[task]) for task in self.tasks}

    def _head(self, names: tuple[str, ...], templates: tuple[str, ...]) -> Any:
        from torch.nn.functional import normalize
        from transformers import AutoTokenizer, CLIPTextModelWithProjection

        tokenizer = AutoTokenizer.from_pretrained(self.model)
        tower = CLIPTextModelWithProjection.from_pretrained(self.model).eval()
        rows = []
        for name in names:
            texts = [template.replace("{}", name) for template in templates]
            length = tower.config.max_position_embeddings
            tokens = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
            with self.torch.no_grad():
                rows.append(normalize(tower(**tokens).text_embeds, dim=-1).mean(0))
        return normalize(self.torch.stack(rows), dim=-1)

    def batches(self, task: str) -> Iterator[tuple[Any, Any]]:
        """Read the test pictures of a task, uint8 (B, 3, S, S), and their labels."""
        from torch.utils.data import DataLoader

        return iter(DataLoader(self.sets[task], batch_size=self.own["batch"]))

    def models(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each variant's name, and its model for each task, one variant in memory at a time."""
        from peft import PeftModel

        from mergers import Merger, Ties

        yield "pretrained", dict.fromkeys(self.tasks, self.base)
        yield (
            "finetuned",
            {
                task: PeftModel.from_pretrained(copy.deepcopy(self.base), self.folder / "adapters" / task).eval()
                for task in self.tasks
            },
        )
        for name, settings in self.own["merges"].items():
            settings = dict(settings)
            if isinstance(settings["method"], dict):
                settings["method"] = Ties(**settings["method"]["init_args"])
            merged = Merger(**settings).merge(self.adapters)
            yield name, dict.fromkeys(self.tasks, merged.apply(copy.deepcopy(self.base)))

    def right(self, model: Any, task: str, images: Any, labels: Any) -> Any:
        """Return how many pictures of a batch the model names."""
        from torch.nn.functional import interpolate, normalize

        pixels = images.float() / 255
        if pixels.shape[-1] != self.side:
            pixels = interpolate(pixels, (self.side,) * 2, mode="bicubic", antialias=True).clamp(0, 1)
        features = normalize(model(pixel_values=(pixels - self.mean) / self.std).image_embeds, dim=-1)
        return ((features @ self.heads[task].T).argmax(-1) == labels).sum()


def _quickstart(plain: Plain, specification: dict[str, Any]) -> tuple[dict, dict, dict]:
    """Return test sets, class names and templates of the quickstart's tasks, which code makes."""
    from torch.utils.data import TensorDataset

    from datamodules import QuickstartDataModule

    data = QuickstartDataModule(specification["tasks"])
    data.setup()
    sets = {}
    for task in specification["tasks"]:
        split = data.split(task, "test")
        sets[task] = TensorDataset(*split.batch(list(split.eval_order())))
    names = {task.name: task.class_names for task in data.tasks}
    return sets, names, {task.name: task.templates for task in data.tasks}


def _pictures(plain: Plain, specification: dict[str, Any]) -> tuple[dict, dict, dict]:
    """Return test sets, class names and templates of folders of pictures."""
    import numpy as np
    from PIL import Image
    from torch.utils.data import Dataset

    class Pictures(Dataset):
        def __init__(self, folder: Path):
            self.classes = sorted(path.name for path in folder.iterdir())
            self.files = [
                (file, n) for n, name in enumerate(self.classes) for file in sorted((folder / name).iterdir())
            ]

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            file, label = self.files[index]
            image, side = Image.open(file).convert("RGB"), plain.side
            short = min(image.size)
            image = image.resize([side * length // short for length in image.size], Image.Resampling.BICUBIC)
            left, top = ((length - side) // 2 for length in image.size)
            pixels = np.asarray(image)[top : top + side, left : left + side].transpose(2, 0, 1)
            return plain.torch.from_numpy(pixels.copy()), label

    sets = {task: Pictures(plain.folder / "pictures" / task / "test") for task in specification["tasks"]}
    names = {task: tuple(one.classes) for task, one in sets.items()}
    return sets, names, dict.fromkeys(names, (specification["template"],))


def plain_loop(specification: dict[str, Any]) -> dict[str, Any]:
    """Test all variants, one after the other; return how many examples of each task each of them names."""
    plain, counts = Plain(specification), {}
    with plain.torch.inference_mode():
        for name, models in plain.models():
            for task in plain.tasks:
                right = sum(plain.right(models[task], task, *batch) for batch in plain.batches(task))
                counts[f"{name} {task}"] = int(right)
    return {"right": counts}


def forward_alone(specification: dict[str, Any]) -> dict[str, Any]:
    """Time what cannot be left out: reading the data once, and a forward pass a batch and variant."""
    plain = Plain(specification)
    start = clock()
    batches = {task: list(plain.batches(task)) for task in plain.tasks}
    loading, forward = since(start), [0.0, 0.0]
    with plain.torch.inference_mode():
        for _, models in plain.models():
            start = clock()
            for task in plain.tasks:
                for batch in batches[task]:
                    plain.right(models[task], task, *batch)
            forward = [total + more for total, more in zip(forward, since(start), strict=True)]
    return {"loading": loading, "forward": forward}


def sweeps(specification: dict[str, Any]) -> dict[str, Any]:
    """Test each configuration with our command, one after the other in this process."""
    from launch.cli import main

    for path in specification["configurations"]:
        main(["test", "--config", path])
    return {}


def parts(specification: dict[str, Any]) -> dict[str, Any]:
    """Return where the time of one ``sheetbend test`` goes, in seconds of the wall and of the processor."""
    spent: dict[str, list[float]] = {}
    from callbacks import MergeCallback
    from datamodules.base import TaskDataModule
    from datamodules.turns import BatchDataset
    from launch.cli import main
    from launch.lightning_cli import SheetbendCLI
    from lightning_modules.base import LoRATasks
    from lightning_modules.evaluation import VariantTester
    from lightning_modules.metrics import Evaluator

    spent["imports"] = since(START)
    places = (
        ("settings", SheetbendCLI, "setup_parser"),
        ("settings", SheetbendCLI, "parse_arguments"),
        ("settings", SheetbendCLI, "instantiate_classes"),
        ("data", TaskDataModule, "setup"),
        ("model", LoRATasks, "build"),
        ("merging", MergeCallback, "build_variants"),
        ("loading", BatchDataset, "__getitem__"),
        ("forward passes", VariantTester, "features_of"),
        ("metrics", Evaluator, "update"),
    )
    with contextlib.ExitStack() as stack:
        for name, owner, method in places:
            stack.enter_context(patch.object(owner, method, _timed(getattr(owner, method), spent, name)))
        main(["test", "--config", specification["configurations"][0]])
    spent["whole"] = since(START)
    return {"spent": spent}


def _timed(function: Callable[..., Any], spent: dict[str, list[float]], name: str) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = clock()
        try:
            return function(*args, **kwargs)
        finally:
            before = spent.get(name, [0.0, 0.0])
            spent[name] = [total + more for total, more in zip(before, since(start), strict=True)]

    return timed


WAYS = {"plain": plain_loop, "forward": forward_alone, "sweeps": sweeps, "parts": parts}


def main(argv: list[str]) -> int:
    """Run one way: its name, and a specification as JSON. The environment says how many threads."""
    way, specification = argv[0], json.loads(argv[1])
    print(json.dumps(WAYS[way](specification)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
