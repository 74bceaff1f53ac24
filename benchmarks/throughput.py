"""Times training and testing through Lightning against a plain PyTorch loop: `python benchmarks/throughput.py`.

The model is a ViT with random weights and LoRA on its attention, so nothing is downloaded. The plain loop does the
same work on batches of the same size: scaling, forward, cosines, loss, backward and AdamW; for a test a forward pass of
the bare model a variant, and the count of right answers.
"""

import argparse
import logging
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from peft import LoraConfig, PeftModel
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import ViTConfig, ViTModel
from transformers.utils.logging import disable_progress_bar

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a tool of the repository: importable without being installed

from datamodules import ArrayData, Task, TaskDataModule  # noqa: E402
from lightning_modules import ImageClassifier, LoRA  # noqa: E402
from lightning_modules.variants import pretrained  # noqa: E402
from mergers import Merger, TaskArithmetic  # noqa: E402

GEOMETRIES = {
    "vit-b-32": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    | {"image_size": 224, "patch_size": 32},
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    | {"image_size": 16, "patch_size": 8},
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
CLASSES = 10
RANK = 16
WARM = 2  # batches before the clock starts
AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    add("--geometry", choices=list(GEOMETRIES), default="vit-b-32")
    add("--seconds", type=float, default=20.0, help="about how long each measurement takes (default: 20)")
    add("--runs", type=int, default=3, help="of each measurement; the median counts (default: 3)")
    add("--batch-size", type=int, default=32, help="images of a training step (default: 32)")
    add("--test-batch-size", type=int, default=128, help="images of a test batch (default: 128)")
    add("--variants", type=int, nargs="+", default=[1, 10], help="numbers of variants in a test (default: 1 10)")
    add("--precision", choices=list(AUTOCAST), default="32-true")
    add("--threads", type=int, help="of torch on the CPU (default: torch's own choice)")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch sees no GPU; give cpu")
    for name in ("seconds", "runs", "batch_size", "test_batch_size", "threads"):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')} is {value}; give more than 0")
    if min(arguments.variants) < 1:
        parser.error(f"--variants has {min(arguments.variants)}; give 1 or more")
    return arguments


class RandomImages(TaskDataModule):
    """One task of random pictures in memory.

    Args:
        side: of the pictures, in pixels.
        size: number of pictures in each split.
        batch_size: see `TaskDataModule`.
        eval_batch_size: see `TaskDataModule`.
        batches: training batches.
    """

    def __init__(self, side: int, size: int, batch_size: int, eval_batch_size: int, batches: int = 1):
        self.side, self.size = side, size
        super().__init__(["random"], batch_size, eval_batch_size, batches, seed=0)

    @classmethod
    def known_tasks(cls) -> dict[str, Task]:
        """Return the one task."""
        return {"random": Task("random", tuple(f"class {index}" for index in range(CLASSES)))}

    def load(self, task: str) -> dict[str, ArrayData]:
        """Draw the pictures of each split."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.size, 3, self.side, self.side)
        return {
            name: ArrayData(
                torch.randint(256, shape, generator=generator, dtype=torch.uint8), torch.arange(self.size) % CLASSES
            )
            for name in ("train", "val", "test")
        }


@dataclass
class Bench:
    """What all measurements share.

    Attributes:
        folder: of the model.
        arguments: the command line's.
    """

    folder: str
    arguments: argparse.Namespace

    @property
    def side(self) -> int:
        """The side of the pictures, in pixels."""
        return GEOMETRIES[self.arguments.geometry]["image_size"]

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.arguments.device == "cuda":
            torch.cuda.synchronize()

    def timed(self, step: Callable[[int], object], count: int | None) -> tuple[float, int]:
        """Call ``step`` with 0, 1, ...; return the seconds of ``count`` calls after the warm-up, and ``count``.

        Where ``count`` is none, it is as many calls as fit into the seconds that were asked for, at least two.
        """
        for index in range(WARM):
            step(index)
        self.wait()
        start, done = time.perf_counter(), 0
        while done < (count or 2) or (count is None and time.perf_counter() - start < self.arguments.seconds):
            step(WARM + done)
            done += 1
            if count is None:
                self.wait()
        self.wait()
        return time.perf_counter() - start, done

    def data(self, batches: int, test: bool) -> RandomImages:
        """Return data for ``batches`` batches after the warm-up; a test has as many pictures, training goes round."""
        own = self.arguments
        size = (WARM + batches) * own.test_batch_size if test else max(4 * own.batch_size, CLASSES)
        return RandomImages(self.side, size, own.batch_size, own.test_batch_size, WARM + batches)

    def module(self) -> ImageClassifier:
        """Return our model, not built yet."""
        lora = LoRA(r=RANK, dropout=0.1, target_modules=TARGETS)
        return ImageClassifier(self.folder, lora=lora, prototype_images=1, seed=0)

    def trainer(self, callback: Callback, **options: int) -> Trainer:
        """Return a trainer that writes nothing."""
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        return Trainer(
            accelerator="gpu" if self.arguments.device == "cuda" else "cpu",
            devices=1,
            precision=self.arguments.precision,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            callbacks=[callback],
            default_root_dir=self.folder,
            **quiet,
            **options,
        )


class Clock(Callback):
    """Times all batches after the warm-up, and gives the model its variants.

    Args:
        bench: knows how to wait for the device.
        variants: how many variants a test has.
    """

    def __init__(self, bench: Bench, variants: int = 1):
        self.bench = bench
        self.variants = variants
        self.seconds = 0.0

    def on_test_start(self, trainer: Trainer, pl_module: ImageClassifier) -> None:
        """Merge the adapter with a coefficient a variant, after the base model itself."""
        pl_module.variants = {"pretrained": pretrained()}
        for index in range(1, self.variants):
            merged = Merger(method=TaskArithmetic(), coefficients=index / 10).merge(pl_module.adapters())
            pl_module.variants[f"merged {index}"] = pl_module.variant(f"times {index / 10}", merged)

    def _begin(self, batch_idx: int) -> None:
        if batch_idx == WARM:
            self.bench.wait()
            self._start = time.perf_counter()

    def _end(self, batch_idx: int) -> None:
        if batch_idx >= WARM:
            self.bench.wait()
            self.seconds = time.perf_counter() - self._start

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):  # noqa: D102
        self._begin(batch_idx)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):  # noqa: D102
        self._end(batch_idx)

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):  # noqa: D102
        self._begin(batch_idx)

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):  # noqa: D102
        self._end(batch_idx)


class PlainLoop:
    """The same work without Lightning and without this library."""

    def __init__(self, bench: Bench):
        self.bench = bench
        self.device = torch.device(bench.arguments.device)
        self.base = ViTModel.from_pretrained(bench.folder).to(self.device).eval()
        width = self.base.config.hidden_size
        self.head = normalize(torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(0))).to(self.device)

    def _logits(self, model: nn.Module, images: Tensor) -> Tensor:
        dtype = AUTOCAST[self.bench.arguments.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            features = model(pixel_values=(images.to(self.device).float() / 255 - 0.5) / 0.5).pooler_output
        return 100 * normalize(features.float(), dim=-1) @ self.head.T

    def train(self, count: int | None) -> tuple[float, int]:
        """Return the seconds of ``count`` training steps, and ``count``."""
        size = self.bench.arguments.batch_size
        split = RandomImages(self.bench.side, max(4 * size, CLASSES), size, size).load("random")["train"]
        config = LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=0.1, target_modules=TARGETS)
        model = PeftModel(self.base, config).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4, weight_decay=0.1)
        scaler = torch.amp.GradScaler(enabled=self.bench.arguments.precision == "16-mixed")

        def step(index: int) -> None:
            rows = [(index * size + offset) % len(split) for offset in range(size)]
            images, labels = split.batch(rows)
            optimizer.zero_grad()
            scaler.scale(cross_entropy(self._logits(model, images), labels.to(self.device))).backward()
            scaler.step(optimizer)
            scaler.update()

        return self.bench.timed(step, count)

    @torch.inference_mode()
    def test(self, variants: int, count: int | None) -> tuple[float, int]:
        """Return the seconds of ``count`` test batches, and ``count``."""
        size = self.bench.arguments.test_batch_size
        split = RandomImages(self.bench.side, 2 * size, size, size).load("random")["test"]
        right = torch.zeros(variants, device=self.device)

        def step(index: int) -> None:
            images, labels = split.batch(list(range(index % 2 * size, (index % 2 + 1) * size)))
            for variant in range(variants):
                right[variant] += (self._logits(self.base, images).argmax(-1) == labels.to(self.device)).sum()

        return self.bench.timed(step, count)


def our_training(bench: Bench, count: int) -> float:
    """Return the seconds of ``count`` training steps through Lightning."""
    clock = Clock(bench)
    bench.trainer(clock, max_steps=WARM + count).fit(bench.module(), bench.data(count, test=False))
    return clock.seconds


def our_test(bench: Bench, variants: int, count: int) -> float:
    """Return the seconds of ``count`` test batches through Lightning."""
    clock, data, module = Clock(bench, variants), bench.data(count, test=True), bench.module()
    data.setup()
    module.build(data.tasks, data=data)
    bench.trainer(clock).test(module, data, verbose=False)
    return clock.seconds


def measure(bench: Bench) -> list[tuple[str, str, float, float]]:
    """Return for each work its name, its unit, and how much of it the plain loop and ours do in a second."""
    own = bench.arguments
    works = [("training", "steps/s", 1, lambda count: PlainLoop(bench).train(count), lambda n: our_training(bench, n))]
    works += [
        (
            f"test, {number} variant{'s' if number > 1 else ''}",
            "images/s",
            own.test_batch_size,
            lambda count, number=number: PlainLoop(bench).test(number, count),
            lambda count, number=number: our_test(bench, number, count),
        )
        for number in own.variants
    ]
    rows = []
    for name, unit, each, plain, ours in works:
        count, rates = None, []
        for run in range(own.runs):  # in turn, so that a busy machine slows both
            print(f"{name}: run {run + 1} of {own.runs}", file=sys.stderr, flush=True)
            seconds, count = plain(count)
            rates.append((each * count / seconds, each * count / ours(count)))
        rows.append((name, unit, *(statistics.median(column) for column in zip(*rates, strict=True))))
    return rows


def table(rows: list[tuple[str, str, float, float]], arguments: argparse.Namespace) -> Table:
    """Return the figures as a table."""
    gpu = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    made = Table(
        title=f"{arguments.geometry}, {arguments.precision}, {gpu}",
        caption=f"batch {arguments.batch_size}, in tests {arguments.test_batch_size}; median of {arguments.runs} runs; "
        f"torch {torch.__version__}, Python {platform.python_version()}",
    )
    for heading in ("work", "unit", "plain loop", "through Lightning", "ratio"):
        made.add_column(heading, justify="left" if heading in ("work", "unit") else "right")
    for name, unit, plain, ours in rows:
        made.add_row(name, unit, f"{plain:.2f}", f"{ours:.2f}", f"{ours / plain:.3f}")
    return made


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        ViTModel(ViTConfig(**GEOMETRIES[arguments.geometry])).save_pretrained(folder)
        side = GEOMETRIES[arguments.geometry]["image_size"]
        (Path(folder) / "preprocessor_config.json").write_text(
            f'{{"image_processor_type": "ViTImageProcessor", "size": {side}, "image_mean": [0.5, 0.5, 0.5], '
            '"image_std": [0.5, 0.5, 0.5]}'
        )
        rows = measure(Bench(folder, arguments))
    Console().print(table(rows, arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
