"""Renders a pool of pictures in worker processes; each sample depends on the seed and its index alone."""

import multiprocessing
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from base_model.canvas import Generator, blend, colour, noise, resize
from base_model.concepts import all_concepts, concept_odds
from mergers.seeding import derive_seed

PIXELS = 32  # pixels a side of what the model sees
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.NEAREST)
# Families whose look at very low resolution is worth knowing, and how often they are shown so.
COARSE = {"digit": 0.4, "letter": 0.2, "garment": 0.15, "face": 0.6, "texture": 0.15, "scene": 0.15, "shape": 0.1}


@dataclass(frozen=True)
class Pool:
    """Rendered samples.

    Attributes:
        images: uint8 (samples, 3, 32, 32).
        concepts: Position in `all_concepts` of what each shows, int64 (samples,).
    """

    images: np.ndarray
    concepts: np.ndarray


def put_on_ground(rng: Generator, mask: np.ndarray, family: str) -> np.ndarray:
    """Give a mask (H, W) a ground: light on dark mostly; else dark on light, or in colours."""
    choice = rng.random()
    size = mask.shape[0]
    if family == "garment":
        ground = 0.0 if choice < 0.85 else rng.uniform(0, 1)
        ink = np.clip(mask * rng.uniform(0.8, 1.3), 0, 1)[..., None]
        outside = np.clip(1 - mask * 8, 0, 1)[..., None]
        return np.repeat(ink * (1 - outside) + ground * outside, 3, axis=-1)
    if choice < 0.65:
        return np.repeat((mask * rng.uniform(0.75, 1.0))[..., None], 3, axis=-1)
    if choice < 0.8:
        return np.repeat((1 - mask * rng.uniform(0.75, 1.0))[..., None], 3, axis=-1)
    ink, ground = colour(rng), colour(rng)
    while abs(ink.mean() - ground.mean()) < 0.3:
        ink, ground = colour(rng), colour(rng)
    image = blend(mask, ground, ink)
    return image + rng.uniform(0, 0.3) * (noise(rng, size, rng.uniform(0.5, 2))[..., None] - 0.5)


def finish(rng: Generator, image: np.ndarray, family: str) -> np.ndarray:
    """Reduce a picture to 32 x 32, as a camera or a small scan would; uint8 (3, 32, 32)."""
    if image.ndim == 2:
        image = put_on_ground(rng, image, family)
    if rng.random() < COARSE[family]:
        side = int(rng.choice([8, 8, 8, 10, 12, 16, 20])) if family == "digit" else int(rng.choice([12, 16, 20, 25]))
        image = resize(image, side, side, Image.Resampling.BOX)
        if side == 8 and family == "digit":  # a small bitmap, often with a rim around it
            image = np.round(np.clip(image, 0, 1) * 16) / 16
            if rng.random() < 0.6:
                image = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    elif rng.random() < 0.5:
        image = resize(image, 28, 28, Image.Resampling.BILINEAR)
        if rng.random() < 0.7 and family in ("digit", "garment", "letter"):
            image = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")
    image = resize(image, PIXELS, PIXELS, FILTERS[rng.choice(3, p=[0.6, 0.25, 0.15])])
    if rng.random() < 0.15:
        image = ndimage.gaussian_filter(image, (0.6, 0.6, 0))
    if rng.random() < 0.3:
        image = image + rng.normal(0, rng.uniform(0.01, 0.06), image.shape)
    return np.ascontiguousarray((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(2, 0, 1))


def render_sample(seed: int, index: int) -> tuple[np.ndarray, int]:
    """Return sample ``index`` of the pool of ``seed``: uint8 (3, 32, 32) and the position of its concept."""
    rng = np.random.default_rng(derive_seed(seed, "sample", index))
    position = int(rng.choice(len(all_concepts()), p=concept_odds()))
    return render_concept(rng, position), position


def render_concept(rng: Generator, position: int) -> np.ndarray:
    """Return one picture of the concept at ``position``, uint8 (3, 32, 32)."""
    concept = all_concepts()[position]
    return finish(rng, concept.render(rng), concept.family)


def _render_range(arguments: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    seed, start, stop = arguments
    samples = [render_sample(seed, index) for index in range(start, stop)]
    return np.stack([image for image, _ in samples]), np.array([position for _, position in samples])


def render_pool(seed: int, samples: int, workers: int = 2, chunk: int = 500) -> Pool:
    """Render ``samples`` pictures in ``workers`` processes; the result is the same for any number of them."""
    ranges = [(seed, start, min(start + chunk, samples)) for start in range(0, samples, chunk)]
    if workers <= 1 or len(ranges) == 1:
        parts = [_render_range(r) for r in ranges]
    else:
        with multiprocessing.get_context("spawn").Pool(workers) as processes:
            parts = processes.map(_render_range, ranges, chunksize=1)
    return Pool(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]).astype(np.int64))
