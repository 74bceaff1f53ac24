"""Procedural textures, each a function of a generator alone, float32 (TEXTURE_SIZE, TEXTURE_SIZE) or (..., 3)."""

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from base_model.canvas import TEXTURE_SIZE as SIZE
from base_model.canvas import Generator, Mask, grid, noise, rescale


def view(rng: Generator, tilt: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return plane coordinates (y, x) of the pixels: turned a little and, with ``tilt``, seen at an angle."""
    y, x = grid(SIZE)
    y, x = y - 0.5, x - 0.5
    angle = rng.normal(0, 0.12)
    y, x = np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x
    depth = 1 + rng.uniform(-tilt, tilt) * x + rng.uniform(-tilt, tilt) * y
    return y / depth + rng.random(), x / depth + rng.random()


def bricks(rng: Generator) -> np.ndarray:
    """Courses of bricks with mortar between them, near or far, lying or upright, each brick of its own grey."""
    y, x = view(rng, tilt=0.8)
    if rng.random() < 0.35:
        y, x = x, y
    rows = np.exp(rng.uniform(np.log(0.9), np.log(8)))
    columns = rows / rng.uniform(1.8, 3.2)
    row = np.floor(y * rows)
    column = np.floor(x * columns + 0.5 * (row % 2))
    mortar = rng.uniform(0.05, 0.16)
    edge_y = np.abs(y * rows - row - 0.5)
    edge_x = np.abs(x * columns + 0.5 * (row % 2) - column - 0.5) * rows / columns
    gap = np.maximum(edge_y, edge_x - 0.5 * rows / columns + 0.5) > 0.5 - mortar
    shade = np.sin(row * 12.9898 + column * 78.233 + rng.random() * 9) * 43758.5453
    face = rng.uniform(0.25, 0.65) + rng.uniform(0.0, 0.25) * (shade - np.floor(shade) - 0.5)
    line = rng.uniform(0.6, 0.9) if rng.random() < 0.7 else rng.uniform(0.05, 0.2)
    rough = rng.uniform(0.05, 0.35) * (noise(rng, SIZE, rng.uniform(0.2, 1.0)) - 0.5)
    return ndimage.gaussian_filter(np.where(gap, line, face), rng.uniform(0.4, 1.0)) + rough


def grass(rng: Generator) -> np.ndarray:
    """Overlapping blades and leaves, thin or broad, light over dark, that lean in many directions."""
    mask = Mask(SIZE)
    mask.draw.rectangle((0, 0, SIZE, SIZE), fill=int(rng.uniform(20, 120)))
    length, width = rng.uniform(0.15, 0.6), np.exp(rng.uniform(np.log(0.015), np.log(0.09)))
    lean, spread, contrast = rng.normal(0, 0.8), rng.uniform(0.3, 1.6), rng.uniform(0.25, 0.6)
    count = int(np.clip(rng.uniform(0.6, 1.8) / (length * width), 40, 320))
    for k in range(count):
        x, y = rng.uniform(-0.1, 1.1, 2)
        angle, bend = lean + rng.normal(0, spread), rng.normal(0, 0.4)
        half = 0.5 * length * rng.uniform(0.5, 1.3)
        mid = (x + half * np.sin(angle), y - half * np.cos(angle))
        tip = (mid[0] + half * np.sin(angle + bend), mid[1] - half * np.cos(angle + bend))
        grey = np.clip(0.25 + 0.25 * k / count + contrast * rng.normal(0, 0.5), 0.03, 1.0)
        mask.stroke([(x, y), mid], width, grey).stroke([mid, tip], 0.6 * width, min(1.0, 1.1 * grey))
        if width > 0.04:
            mask.stroke([(x, y), mid, tip], 0.2 * width, min(1.0, 1.35 * grey))
    return ndimage.gaussian_filter(mask.array(), rng.uniform(0.3, 0.9)) + 0.15 * (noise(rng, SIZE, 0.4) - 0.5)


def voronoi(rng: Generator, cells: int, squeeze: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for each pixel, the nearest cell and the distances to the nearest and next centres."""
    y, x = grid(SIZE)
    points = rng.uniform(-0.15, 1.15, (cells, 2)) * [squeeze, 1]
    distance, index = cKDTree(points).query(np.stack([y * squeeze, x], -1).reshape(-1, 2), k=2)
    shape = (SIZE, SIZE)
    return index[:, 0].reshape(shape), distance[:, 0].reshape(shape), distance[:, 1].reshape(shape)


def pebbles(rng: Generator) -> np.ndarray:
    """Stones, rounded or with facets, each of its own grey, lit from one side, dark between them."""
    cells = int(np.exp(rng.uniform(np.log(10), np.log(250))))
    index, near, next_ = voronoi(rng, cells, rng.uniform(0.8, 1.25))
    scale, edge = 1 / np.sqrt(cells), rng.uniform(0.15, 0.5)
    dome = np.clip((next_ - near) / scale, 0, edge) / edge
    base, spread = rng.uniform(0.4, 0.75), rng.uniform(0.05, 0.3)
    y, x = grid(SIZE)
    slope = rng.normal(0, rng.uniform(0.0, 0.25), (2, cells)) / scale
    flat, members = index.ravel(), np.maximum(np.bincount(index.ravel(), minlength=cells), 1)
    facets = np.zeros((SIZE, SIZE))
    for axis, steep in zip((x, y), slope, strict=True):
        centre = np.bincount(flat, axis.ravel(), minlength=cells) / members
        facets += steep[index] * (axis - centre[index])
    dy, dx = np.gradient(ndimage.gaussian_filter(dome, 0.7))
    light = rng.uniform(0, 2 * np.pi)
    lit = (np.cos(light) * dx + np.sin(light) * dy) * rng.uniform(0.2, 0.9)
    grey = rng.uniform(base - spread, base + spread, cells)[index] + facets
    stones = grey * (0.2 + 0.8 * np.sqrt(dome)) + lit + rng.uniform(0.05, 0.25) * (noise(rng, SIZE, 0.5) - 0.5)
    return ndimage.gaussian_filter(stones, rng.uniform(0.3, 0.9))


def wood(rng: Generator) -> np.ndarray:
    """Long wavy grain."""
    y, x = view(rng)
    warp = noise(rng, SIZE, 1.8) * rng.uniform(0.05, 0.25)
    rings = np.sin((x + warp) * rng.uniform(25, 80) + 2 * np.sin(3 * y))
    fine = ndimage.gaussian_filter1d(rng.random((SIZE, SIZE)), 8, axis=0)
    return 0.5 + 0.2 * rings + 1.2 * (fine - 0.5)


def fabric(rng: Generator) -> np.ndarray:
    """A weave of threads over and under one another."""
    y, x = view(rng)
    count = rng.uniform(8, 20)
    over = (np.floor(x * count) + np.floor(y * count)) % 2
    threads = np.where(over > 0, np.abs(np.sin(np.pi * x * count)), np.abs(np.sin(np.pi * y * count)))
    return 0.25 + 0.5 * threads + 0.2 * (noise(rng, SIZE, 0.4) - 0.5)


def stripes(rng: Generator) -> np.ndarray:
    """Parallel bands in any direction."""
    y, x = view(rng)
    angle = rng.uniform(0, np.pi)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * rng.uniform(18, 60))
    return 0.5 + 0.45 * np.clip(wave * rng.choice([1, 6]), -1, 1)


def dots(rng: Generator) -> np.ndarray:
    """A lattice of round dots."""
    y, x = view(rng)
    count = rng.uniform(4, 11)
    r = np.hypot((x * count) % 1 - 0.5, (y * count) % 1 - 0.5)
    spots = np.clip((rng.uniform(0.2, 0.38) - r) * 12, 0, 1)
    return spots if rng.random() < 0.5 else 1 - spots


def checker(rng: Generator) -> np.ndarray:
    """A chessboard, also seen at an angle."""
    y, x = view(rng, tilt=0.5)
    count = rng.uniform(4, 12)
    return 0.1 + 0.8 * ((np.floor(x * count) + np.floor(y * count)) % 2)


def ripples(rng: Generator) -> np.ndarray:
    """Waves on water: crests bent by slow noise."""
    y, _ = view(rng, tilt=0.6)
    warp = noise(rng, SIZE, 1.7) * rng.uniform(0.15, 0.4)
    return 0.5 + 0.4 * np.sin((y + warp) * rng.uniform(25, 60))


def clouds(rng: Generator) -> np.ndarray:
    """Soft white shapes on a darker sky."""
    return np.clip(noise(rng, SIZE, 1.8) * 1.8 - 0.4, 0, 1) * 0.6 + 0.35


def static(rng: Generator) -> np.ndarray:
    """Noise without any structure."""
    return 0.5 + rng.uniform(0.1, 0.35) * rng.standard_normal((SIZE, SIZE))


def marble(rng: Generator) -> np.ndarray:
    """Thin dark veins through a light stone."""
    ridge = np.abs(noise(rng, SIZE, 1.6) - 0.5)
    return 0.85 - 0.6 * np.exp(-ridge * rng.uniform(15, 40)) + 0.1 * (noise(rng, SIZE, 1.0) - 0.5)


def cracks(rng: Generator) -> np.ndarray:
    """Dry earth: plates with thin dark gaps."""
    index, near, next_ = voronoi(rng, int(rng.integers(8, 40)))
    plates = rng.uniform(0.5, 0.75, 60)[index]
    return np.where(next_ - near < rng.uniform(0.012, 0.03), 0.12, plates) + 0.15 * (noise(rng, SIZE, 0.8) - 0.5)


def tiles(rng: Generator) -> np.ndarray:
    """Square tiles with straight joints."""
    y, x = view(rng, tilt=0.4)
    count = rng.uniform(2.5, 7)
    gap = np.maximum(np.abs((x * count) % 1 - 0.5), np.abs((y * count) % 1 - 0.5)) > 0.46
    return np.where(gap, rng.uniform(0.1, 0.3), rng.uniform(0.6, 0.9)) + 0.1 * (noise(rng, SIZE, 0.9) - 0.5)


def sand(rng: Generator) -> np.ndarray:
    """Fine even grain."""
    return 0.6 + 0.5 * (rescale(ndimage.gaussian_filter(rng.random((SIZE, SIZE)), 0.6)) - 0.5)


TEXTURES = {
    "brick wall": (bricks, (0.35, 0.1, 0.05), (1.0, 0.75, 0.6)),
    "grass": (grass, (0.02, 0.12, 0.0), (0.6, 0.95, 0.35)),
    "gravel": (pebbles, (0.1, 0.09, 0.08), (0.95, 0.92, 0.88)),
    "wood": (wood, (0.25, 0.12, 0.03), (0.9, 0.65, 0.4)),
    "fabric": (fabric, (0.1, 0.1, 0.2), (0.9, 0.85, 0.95)),
    "stripes": (stripes, (0.1, 0.1, 0.3), (0.95, 0.95, 0.9)),
    "dots": (dots, (0.3, 0.05, 0.1), (1.0, 0.95, 0.9)),
    "checkerboard": (checker, (0.05, 0.05, 0.05), (0.98, 0.98, 0.98)),
    "water ripples": (ripples, (0.0, 0.15, 0.35), (0.7, 0.9, 1.0)),
    "clouds": (clouds, (0.2, 0.4, 0.8), (1.0, 1.0, 1.0)),
    "noise": (static, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "marble": (marble, (0.2, 0.2, 0.25), (1.0, 0.98, 0.95)),
    "cracked earth": (cracks, (0.2, 0.12, 0.05), (0.9, 0.75, 0.55)),
    "tiles": (tiles, (0.1, 0.2, 0.3), (0.95, 0.97, 1.0)),
    "sand": (sand, (0.5, 0.4, 0.2), (1.0, 0.9, 0.7)),
}


def texture(rng: Generator, name: str) -> np.ndarray:
    """Return the named texture, float32 (SIZE, SIZE, 3): in grey, in its own colours or in others."""
    render, dark, light = TEXTURES[name]
    values = np.clip(render(rng), 0, 1)[..., None].astype(np.float32)
    choice = rng.random()
    if choice < 0.6:
        return np.repeat(values, 3, axis=-1)
    dark, light = np.asarray(dark), np.asarray(light)
    if choice > 0.9:
        order = rng.permutation(3)
        dark, light = dark[order], light[order]
    return (dark + values * (light - dark)).astype(np.float32)
