"""Geometric shapes in plain colours, alone, in numbers and in pairs."""

import numpy as np

from base_model.canvas import Generator, Mask, affine, blend, noise

SHAPES = ("circle", "square", "triangle", "cross", "ring", "star", "diamond", "heart")
COLOURS = {
    "red": (0.85, 0.12, 0.12),
    "green": (0.15, 0.65, 0.2),
    "blue": (0.15, 0.25, 0.85),
    "yellow": (0.95, 0.88, 0.15),
    "orange": (0.95, 0.55, 0.1),
    "purple": (0.55, 0.15, 0.65),
    "white": (0.97, 0.97, 0.97),
    "black": (0.04, 0.04, 0.04),
}


def outline(shape: str, x: float, y: float, r: float) -> np.ndarray:
    """Return one shape of radius ``r`` about (x, y) as a mask; all three are fractions of the canvas."""
    mask = Mask()

    def polar(angles: np.ndarray, radii: np.ndarray | float) -> list[tuple[float, float]]:
        return list(zip(x + r * radii * np.sin(angles), y - r * radii * np.cos(angles), strict=True))

    if shape == "circle":
        mask.ellipse(x, y, r, r)
    elif shape == "ring":
        mask.ellipse(x, y, r, r).ellipse(x, y, 0.6 * r, 0.6 * r, 0.0)
    elif shape == "cross":
        mask.stroke([(x - r, y), (x + r, y)], 0.5 * r).stroke([(x, y - r), (x, y + r)], 0.5 * r)
    elif shape == "star":
        mask.polygon(polar(np.arange(10) * np.pi / 5, np.tile([1.1, 0.45], 5)))
    elif shape == "heart":
        t = np.linspace(0, 2 * np.pi, 40)
        down = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        mask.polygon(list(zip(x + r * np.sin(t) ** 3, y - r * down / 15, strict=True)))
    else:
        corners, turn = {"square": (4, np.pi / 4), "diamond": (4, 0.0), "triangle": (3, 0.0)}[shape]
        mask.polygon(polar(turn + np.arange(corners) * 2 * np.pi / corners, 1.1))
    return mask.array()


def backdrop(rng: Generator, avoid: np.ndarray) -> np.ndarray:
    """Return a quiet background colour (3,) that is far from the colour ``avoid`` (3,)."""
    for _ in range(20):
        candidate = np.full(3, rng.random()) if rng.random() < 0.6 else rng.random(3)
        if np.abs(candidate - avoid).sum() > 0.9:
            break
    return candidate.astype(np.float32)


def paint(rng: Generator, masks: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Lay masks (SIZE, SIZE) with their colours (3,) over one background, float32 (SIZE, SIZE, 3)."""
    image = np.broadcast_to(backdrop(rng, masks[0][1]), (*masks[0][0].shape, 3))
    for mask, colour in masks:
        image = blend(mask, image, colour)
    return image + (noise(rng, image.shape[0], 0.8)[..., None] - 0.5) * rng.uniform(0, 0.15)


def shade(rng: Generator, colour: str) -> np.ndarray:
    """Return a colour (3,) near the one named."""
    return np.clip(np.asarray(COLOURS[colour]) + rng.normal(0, 0.05, 3), 0, 1).astype(np.float32)


def single(rng: Generator, shape: str, colour: str) -> np.ndarray:
    """Return one shape in one colour, of any size and place."""
    r = rng.uniform(0.15, 0.38)
    x, y = rng.uniform(r + 0.05, 0.95 - r, 2)
    mask = outline(shape, x, y, r)
    if shape not in ("square", "diamond"):
        mask = affine(mask, angle=rng.normal(0, 0.15))
    return paint(rng, [(mask, shade(rng, colour))])


def several(rng: Generator, shape: str, count: int) -> np.ndarray:
    """Return ``count`` (at most 4) equal shapes, one in each quarter of the canvas."""
    colour = shade(rng, list(COLOURS)[rng.integers(len(COLOURS))])
    cells = rng.permutation([(0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)])[:count]
    r = rng.uniform(0.13, 0.2)
    return paint(rng, [(outline(shape, *(cell + rng.uniform(-0.04, 0.04, 2)), r), colour) for cell in cells])


def pair(rng: Generator, first: str, second: str, relation: str) -> np.ndarray:
    """Return ``first`` above, or left of, ``second``; ``relation`` is "above" or "left of"."""
    names = rng.permutation(list(COLOURS))[:2]
    across = rng.uniform(0.3, 0.7, 2)
    places = [(across[0], 0.27), (across[1], 0.74)]
    if relation == "left of":
        places = [(y, x) for x, y in places]
    masks = [
        (outline(s, *p, rng.uniform(0.15, 0.22)), shade(rng, n))
        for s, p, n in zip((first, second), places, names, strict=True)
    ]
    return paint(rng, masks)
