"""Pictures into arrays: resizing, crops from disjoint regions, seeded splits."""

import numpy as np
from PIL import Image

from datamodules.splits import divided, first_of_each
from datamodules.tasks import ArrayData, Split
from mergers.seeding import derive_seed

SIZE = 32


def to_rgb32(pictures: np.ndarray, border: int = 0) -> np.ndarray:
    """Return uint8 (N, 3, 32, 32) of uint8 (N, H, W) or (N, H, W, 3), bilinear, with ``border`` black pixels added."""
    if border:
        widths = [(0, 0), (border, border), (border, border)] + [(0, 0)] * (pictures.ndim - 3)
        pictures = np.pad(pictures, widths)
    out = np.empty((len(pictures), 3, SIZE, SIZE), np.uint8)
    for row, picture in zip(out, pictures, strict=True):
        image = Image.fromarray(picture).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        row[:] = np.asarray(image).transpose(2, 0, 1)
    return out


def stratified(pictures: np.ndarray, labels: np.ndarray, sizes: dict[str, float], seed_name: str) -> dict[str, Split]:
    """Split at random, class by class, after dropping repeated pictures; each split comes in a random order.

    Args:
        pictures: uint8 (N, 3, 32, 32).
        labels: (N,).
        sizes: share of each split, in the order in which they take their examples.
        seed_name: what the random choice and order depend on.
    """
    first = first_of_each(picture.tobytes() for picture in pictures)
    pictures, labels = pictures[first], labels[first]
    # Shuffled, so that no loader order has all of one class in a row.
    rows = divided(seed_name, labels, sizes, shuffled=True)
    return {name: ArrayData(pictures[taken], labels[taken]) for name, taken in rows.items()}


def bands(width: int, shares: dict[str, float], gap: int) -> dict[str, tuple[int, int]]:
    """Cut ``width`` columns into one band a split, ``gap`` unused columns between them.

    >>> bands(100, {"train": 0.5, "val": 0.25, "test": 0.25}, gap=10)
    {'train': (0, 40), 'val': (50, 70), 'test': (80, 100)}
    """
    usable = width - gap * (len(shares) - 1)
    edges = np.round(np.cumsum([0.0, *shares.values()]) * usable).astype(int).tolist()
    return {name: (edges[i] + i * gap, edges[i + 1] + i * gap) for i, name in enumerate(shares)}


def band_crops(
    photographs: list[np.ndarray], crops: list[int], counts: dict[str, int], shares: dict[str, float], seed_name: str
) -> dict[str, Split]:
    """Crop squares from photographs, one class a photograph, each split from its own band of columns.

    Positions are random within the band, so crops of one split may overlap each other, never those of another.

    Args:
        photographs: uint8 (H, W) or (H, W, 3).
        crops: side of a square, in pixels, for each photograph; it is resized to 32.
        counts: crops of each photograph in each split.
        shares: share of the columns of each split.
        seed_name: what the positions are derived from.
    """
    splits: dict[str, tuple[list[np.ndarray], list[int]]] = {name: ([], []) for name in counts}
    for label, (photograph, side) in enumerate(zip(photographs, crops, strict=True)):
        for name, (start, stop) in bands(photograph.shape[1], shares, gap=8).items():
            generator = np.random.default_rng(derive_seed("crops", seed_name, label, name))
            rows, columns = photograph.shape[0] - side + 1, stop - start - side + 1
            places = generator.choice(rows * columns, size=counts[name], replace=False)
            for top, left in zip(places // columns, places % columns + start, strict=True):
                splits[name][0].append(photograph[top : top + side, left : left + side])
                splits[name][1].append(label)
    out = {}
    for name, (pictures, labels) in splits.items():
        order = np.random.default_rng(derive_seed("crop order", seed_name, name)).permutation(len(labels))
        arrays = np.concatenate([to_rgb32(picture[None]) for picture in pictures])
        out[name] = ArrayData(arrays[order], np.array(labels)[order])
    return out
