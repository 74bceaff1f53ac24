"""Digits and letters: set in many fonts, or drawn with strokes as a hand would."""

import functools
import json
from importlib.metadata import entry_points
from pathlib import Path

import matplotlib
import numpy as np
from PIL import ImageFont
from scipy import ndimage
from skimage.morphology import skeletonize

from base_model.canvas import SIZE, Generator, Mask, affine, crop_to_ink, curve, elastic, resize

# Symbol fonts of matplotlib, which have no digits or letters of the ordinary kind.
NOT_TEXT = ("cmex", "cmsy", "cmmi", "STIXNonUni", "STIXSiz", "LastResort", "DejaVuSansDisplay", "DejaVuSerifDisplay")

# Strokes of handwritten digits. Each variant lists strokes: a kind ("curve" is a spline through the points, "line"
# straight pieces) and control points (x, y) in the unit square, y downwards.
STROKES = json.loads(Path(__file__).with_name("strokes.json").read_text(encoding="utf-8"))


@functools.cache
def font_files() -> tuple[str, ...]:
    """Return the text fonts of matplotlib and of the installed font packages, in a fixed order."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = [path for path in folder.glob("*.ttf") if not path.name.startswith(NOT_TEXT)]
    for entry in entry_points(group="fonts_ttf"):
        files += [Path(path) for path in entry.load().values()]
    return tuple(str(path) for path in sorted(set(files), key=lambda path: path.name))


@functools.cache
def load_font(path: str, size: int) -> ImageFont.FreeTypeFont:
    """Return a font at ``size`` pixels, loaded once a process."""
    return ImageFont.truetype(path, size)


def typeset(rng: Generator, text: str) -> np.ndarray:
    """Return ``text`` set in a random font, cut to its ink, float32 (h, w)."""
    files = font_files()
    mask = Mask(SIZE)
    mask.draw.text((SIZE / 2, SIZE / 2), text, 255, load_font(files[rng.integers(len(files))], 72), anchor="mm")
    return crop_to_ink(mask.array())


def restroke(rng: Generator, mask: np.ndarray) -> np.ndarray:
    """Thin a glyph (h, w) to its skeleton and draw it again with a pen of random width."""
    line = skeletonize(np.pad(mask, 8) > 0.5)
    distance = ndimage.distance_transform_edt(~line)
    width = rng.uniform(1.5, 6.5)
    return np.clip(width + 0.5 - distance, 0, 1).astype(np.float32)


def handwrite(rng: Generator, digit: str) -> np.ndarray:
    """Return a digit drawn with jittered strokes, cut to its ink, float32 (h, w)."""
    variants = STROKES[digit]
    jitter, width = rng.uniform(0.0, 0.045), rng.uniform(0.03, 0.12)
    mask = Mask(SIZE)
    for kind, points in variants[rng.integers(len(variants))]:
        moved = np.asarray(points) + rng.normal(0, jitter, (len(points), 2))
        moved = 0.16 + 0.68 * moved
        mask.stroke(curve(moved) if kind == "curve" else [tuple(p) for p in moved], width)
    return mask.array()


def distort(rng: Generator, mask: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """Slant, turn, stretch and bend a glyph; cut to its ink again."""
    height, width = mask.shape
    side = max(height, width) + 24
    top, left = (side - height) // 2, (side - width) // 2
    padded = np.pad(mask, ((top, side - height - top), (left, side - width - left)))
    padded = affine(
        padded,
        angle=rng.normal(0, 0.1) * strength,
        shear=rng.normal(0.0, 0.18) * strength,
        scale=(rng.uniform(0.72, 1.0), rng.uniform(0.8, 1.0)),
    )
    if rng.random() < 0.6:
        padded = elastic(rng, padded, rng.uniform(0.5, 2.2) * strength, smooth=16)
    return crop_to_ink(padded)


def place(rng: Generator, ink: np.ndarray, fill_box: bool) -> np.ndarray:
    """Put cut ink on a square canvas (SIZE, SIZE): kept in proportion with a margin, or stretched to the edges."""
    height, width = ink.shape
    if fill_box:
        box_height, box_width = SIZE, int(SIZE * rng.uniform(0.6, 1.0) * min(1.0, 0.35 + width / height))
    else:
        longest = SIZE * rng.uniform(0.58, 0.85)
        ratio = longest / max(height, width)
        box_height, box_width = round(height * ratio), round(width * ratio)
    box_height, box_width = max(box_height, 4), min(SIZE, max(box_width, 4))
    scaled = np.clip(resize(ink, box_height, box_width), 0, 1)
    slack_y, slack_x = SIZE - box_height, SIZE - box_width
    top = int(np.clip(slack_y / 2 + rng.normal(0, 0.03) * SIZE, 0, slack_y))
    left = int(np.clip(slack_x / 2 + rng.normal(0, 0.03) * SIZE, 0, slack_x))
    canvas = np.zeros((SIZE, SIZE), np.float32)
    canvas[top : top + box_height, left : left + box_width] = scaled
    return canvas


def glyph(rng: Generator, text: str) -> np.ndarray:
    """Return a digit or a letter as a mask, float32 (SIZE, SIZE), in one of the styles above."""
    if text in STROKES and rng.random() < 0.6:
        ink = distort(rng, handwrite(rng, text))
    else:
        ink = typeset(rng, text)
        if rng.random() < 0.6:
            ink = restroke(rng, ink)
        if rng.random() < 0.8:
            ink = distort(rng, ink, strength=0.8)
    return place(rng, ink, fill_box=rng.random() < 0.35)
