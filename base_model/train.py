"""Trains the small CLIP from nothing on procedural pictures: `python base_model/train.py --output FOLDER`."""

import argparse
import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

# Each shard of a batch runs in a thread of its own, so operators shall not start more: two shards that meet
# twice a step lose far less to other work on the machine than threads that meet in every operator.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel, PreTrainedTokenizerFast
from transformers.utils import logging

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a tool of the repository: importable without being installed

from base_model.concepts import all_concepts, every_caption  # noqa: E402
from base_model.model import choose_patches, encode_images, encode_texts, make_model, normalise, save_model  # noqa: E402
from base_model.pool import Pool, render_pool  # noqa: E402
from base_model.tokenizer import train_tokenizer  # noqa: E402
from mergers.files import atomic_folder  # noqa: E402
from mergers.seeding import derive_generator, derive_seed  # noqa: E402

RECORD = "training.json"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder to write; one that exists is replaced at the end")
    add("--seed", type=int, default=0, help="seed of the pictures, the captions and the weights")
    add("--samples", type=int, default=60_000, help="pictures in the pool, rendered once before training")
    add("--steps", type=int, default=2600, help="optimiser steps")
    add("--batch", type=int, default=160, help="pairs of picture and caption a step")
    add("--lr", type=float, default=1.5e-3, help="highest learning rate of AdamW, after warm-up, before cosine decay")
    add("--weight-decay", type=float, default=0.05, help="weight decay of AdamW, on matrices only")
    add("--warmup", type=float, default=0.05, help="share of the steps in which the learning rate rises, 0 to 1")
    add("--keep", type=float, default=0.4, help="share of the patches the image tower sees, 0 to 1")
    add("--full", type=float, default=0.12, help="share of the steps, at the end, in which it sees all patches, 0 to 1")
    add("--hidden", type=int, default=128, help="channels of both towers, a multiple of 32")
    add("--layers", type=int, default=4, help="layers of the image tower")
    add("--vocabulary", type=int, default=2500, help="largest number of tokens, at most 4000")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes that render")
    add(
        "--threads",
        type=int,
        default=os.cpu_count() or 1,
        help="threads that train, each on its share of a batch; more or fewer give other random numbers",
    )
    return parser.parse_args(argv)


def augment(images: Tensor, mirrors: Tensor, generator: torch.Generator) -> Tensor:
    """Vary pictures at random: place, size, angle, mirror image, contrast, brightness, noise.

    Args:
        images: uint8 (B, 3, H, W).
        mirrors: Which pictures may be mirrored, bool (B,).
        generator: Source of the variation.

    Returns:
        float (B, 3, H, W) in [0, 1].
    """
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    angle, scale = uniform(-0.12, 0.12), uniform(0.85, 1.15)
    flip = torch.where(mirrors & (uniform(0, 1) < 0.5), -1.0, 1.0)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack([flip * cos, -sin, uniform(-0.12, 0.12), flip * sin, cos, uniform(-0.12, 0.12)], -1)
    lattice = functional.affine_grid(theta.view(-1, 2, 3), list(images.shape), align_corners=False)
    moved = functional.grid_sample(images.float() / 255, lattice, padding_mode="border", align_corners=False)
    contrast, brightness, strength = uniform(0.7, 1.25), uniform(-0.12, 0.12), uniform(0, 0.05)
    mean = moved.mean((1, 2, 3), keepdim=True)
    moved = (moved - mean) * contrast.view(-1, 1, 1, 1) + mean + brightness.view(-1, 1, 1, 1)
    moved = moved + torch.randn(moved.shape, generator=generator) * strength.view(-1, 1, 1, 1)
    return moved.clamp(0, 1)


def contrastive_loss(images: Tensor, texts: Tensor, concepts: Tensor, logit_scale: Tensor) -> Tensor:
    """Cross-entropy of CLIP in both directions, all pairs of one concept sharing the target evenly.

    Args:
        images: Image features (B, D).
        texts: Text features (B, D).
        concepts: What each pair shows, int64 (B,).
        logit_scale: Logarithm of the scale of the cosines, scalar.

    >>> same = torch.eye(2)
    >>> bool(contrastive_loss(same, same, torch.arange(2), torch.tensor(4.6)) < 1e-6)
    True
    """
    cosines = functional.normalize(images, dim=-1) @ functional.normalize(texts, dim=-1).T
    logits = cosines * logit_scale.exp()
    positives = (concepts[:, None] == concepts[None]).float()
    targets = positives / positives.sum(1, keepdim=True)
    return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2


class Batch(NamedTuple):
    """Pairs of one step: uint8 images (B, 3, H, W), B captions, concepts int64 (B,), mirrors bool (B,)."""

    images: Tensor
    captions: list[str]
    concepts: Tensor
    mirrors: Tensor


def backward(
    model: CLIPModel,
    tokenizer: PreTrainedTokenizerFast,
    batch: Batch,
    keep: float,
    threads: ThreadPoolExecutor,
    generators: list[torch.Generator],
) -> float:
    """Add the gradients of one batch to the parameters and return its loss; its shards run side by side.

    The loss needs the features of the whole batch, so each shard goes forward, the loss is taken of all, and its
    gradient with respect to the features goes back through each shard. A sum of two is the same in either
    order: with one or two shards the result does not depend on which thread is faster.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        batch: The pairs.
        keep: Share of the patches that the image tower sees.
        threads: Where the shards run.
        generators: One a shard, for its augmentation and its choice of patches.
    """
    shards = len(generators)
    parts = torch.arange(len(batch.captions)).tensor_split(shards)

    def forward(part: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        pixels = normalise(augment(batch.images[part], batch.mirrors[part], generator))
        images = encode_images(model, pixels, choose_patches(len(part), keep, generator))
        return images, encode_texts(model, tokenizer, [batch.captions[k] for k in part])

    features = list(threads.map(forward, parts, generators))
    images = torch.cat([f[0].detach() for f in features]).requires_grad_()
    texts = torch.cat([f[1].detach() for f in features]).requires_grad_()
    loss = contrastive_loss(images, texts, batch.concepts, model.logit_scale)
    loss.backward()
    gradients = zip(images.grad.tensor_split(shards), texts.grad.tensor_split(shards), strict=True)
    list(threads.map(torch.autograd.backward, features, gradients))
    return loss.item()


def batches(pool: Pool, size: int, seed: int) -> Iterator[np.ndarray]:
    """Yield positions in the pool, int64 (size,), for ever, each epoch in an order of its own."""
    size, epoch = min(size, len(pool.concepts)), 0
    while True:
        order = np.random.default_rng(derive_seed(seed, "order", epoch)).permutation(len(pool.concepts))
        yield from order[: len(order) // size * size].reshape(-1, size)
        epoch += 1


def schedule(step: int, steps: int, warmup: float) -> float:
    """Return the factor on the learning rate: linear rise, then half a cosine to 0."""
    rise = max(1, int(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def train(arguments: argparse.Namespace) -> dict[str, object]:
    """Render, train and write the folder; return what `RECORD` in it says."""
    torch.set_num_threads(1)
    torch.manual_seed(derive_seed(arguments.seed, "weights"))
    generators = [derive_generator(arguments.seed, "augment", shard) for shard in range(arguments.threads)]
    caption_rng = np.random.default_rng(derive_seed(arguments.seed, "captions"))
    begin = time.monotonic()
    pool = render_pool(arguments.seed, arguments.samples, arguments.workers)
    rendered = time.monotonic() - begin
    print(f"rendered {arguments.samples} pictures in {rendered:.0f} s", flush=True)
    concepts = all_concepts()
    tokenizer = train_tokenizer(every_caption(), arguments.vocabulary)
    model = make_model(tokenizer, arguments.hidden, arguments.layers)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, {len(tokenizer)} tokens, {len(concepts)} concepts", flush=True)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": arguments.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=arguments.lr,
        betas=(0.9, 0.98),
    )
    mirrors = torch.tensor([c.mirrors for c in concepts])
    order = batches(pool, arguments.batch, arguments.seed)
    smooth, start, threads = None, time.monotonic(), ThreadPoolExecutor(arguments.threads)
    for step in range(arguments.steps):
        chosen = next(order)
        shown = torch.from_numpy(pool.concepts[chosen])
        captions = [concepts[k].caption(caption_rng) for k in shown.tolist()]
        batch = Batch(torch.from_numpy(pool.images[chosen]), captions, shown, mirrors[shown])
        keep = arguments.keep if step < (1 - arguments.full) * arguments.steps else 1.0
        for group in optimiser.param_groups:
            group["lr"] = arguments.lr * schedule(step, arguments.steps, arguments.warmup)
        optimiser.zero_grad(set_to_none=True)
        loss = backward(model, tokenizer, batch, keep, threads, generators)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
        if (step + 1) % 100 == 0 or step + 1 == arguments.steps:
            seconds = time.monotonic() - start
            print(f"step {step + 1}/{arguments.steps}  loss {smooth:.3f}  {seconds:.0f} s", flush=True)
    record = {
        "options": {k: v for k, v in vars(arguments).items() if k not in ("output", "workers", "threads")},
        "parameters": parameters,
        "tokens": len(tokenizer),
        "concepts": len(concepts),
        "loss": round(smooth or 0.0, 4),
        "render_seconds": round(rendered),
        "train_seconds": round(time.monotonic() - start),
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "cores": arguments.threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    logging.disable_progress_bar()
    with atomic_folder(arguments.output) as folder:
        save_model(folder, model.eval(), tokenizer)
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}; next: python base_model/card.py --model {arguments.output}", flush=True)
    return record


if __name__ == "__main__":
    train(parse_arguments())
