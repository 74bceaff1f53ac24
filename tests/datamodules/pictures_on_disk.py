"""Tiny pictures in the true formats of image data sets."""

import io
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage


def picture(seed, height=10, width=8, channels=3):
    """A picture that no other seed has, uint8 (H, W) or (H, W, 3)."""
    shape = (height, width, 3) if channels == 3 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(seed, suffix=".png", **sizes):
    """The same as the bytes of a file."""
    file = io.BytesIO()
    PILImage.fromarray(picture(seed, **sizes)).save(file, PILImage.registered_extensions()[suffix])
    return file.getvalue()


def write(path, seed, **sizes):
    """The same as a file of the format that its suffix says."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(seed, path.suffix, **sizes))
    return path


def class_folders(root, names, count, start=0):
    """``count`` pictures a class; returns the paths with their class names."""
    pairs = [(name, f"{name}/{number}.png") for name in names for number in range(count)]
    return [(write(Path(root) / file, start + seed), name) for seed, (name, file) in enumerate(pairs)]


def parquet(folder, splits, names=None, image="image", label="label", start=0):
    """A data set as the hub keeps it, data/<split>-00000-of-00001.parquet; ``splits`` has the labels of each."""
    features = Features({image: Image(), label: ClassLabel(names=list(names)) if names else Value("int64")})
    seed = start
    for split, labels in splits.items():
        rows = {image: [{"bytes": encoded(seed + i), "path": None} for i in range(len(labels))], label: list(labels)}
        seed += len(labels)
        path = Path(folder) / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(rows, features=features).to_parquet(path)
    return Path(folder)
