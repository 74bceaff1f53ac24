"""Small drawing tools that all renderers share: masks, noise, warps, blends."""

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

SIZE = 96  # pixels a side of drawings, before they are reduced to the model's 32
TEXTURE_SIZE = 64  # pixels a side of textures, which need no smooth outlines

Point = tuple[float, float]
Generator = np.random.Generator


@functools.cache
def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates (y, x), each float32 (size, size), in [0, 1)."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    return np.meshgrid(axis, axis, indexing="ij")


@functools.cache
def _frequencies(size: int) -> np.ndarray:
    fy = np.fft.fftfreq(size)[:, None]
    fx = np.fft.rfftfreq(size)[None, :]
    radius = np.hypot(fy, fx)
    radius[0, 0] = 1.0 / size
    return radius.astype(np.float32)


def noise(rng: Generator, size: int = TEXTURE_SIZE, power: float = 1.0) -> np.ndarray:
    """Return periodic noise with spectrum 1 / f**power, float32 (size, size), scaled to [0, 1]."""
    white = np.fft.rfft2(rng.standard_normal((size, size)).astype(np.float32))
    values = np.fft.irfft2(white / _frequencies(size) ** power, s=(size, size))
    return rescale(values)


def rescale(values: np.ndarray) -> np.ndarray:
    """Map values linearly so that the smallest is 0 and the largest 1 (float32)."""
    low, high = values.min(), values.max()
    return ((values - low) / max(high - low, 1e-8)).astype(np.float32)


def blend(mask: np.ndarray, below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Lay ``above`` over ``below`` where ``mask`` (H, W) is 1; colours are (3,) or (H, W, 3)."""
    weight = mask[..., None]
    return (below * (1 - weight) + above * weight).astype(np.float32)


def colour(rng: Generator, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Return a random colour, float32 (3,)."""
    return rng.uniform(low, high, 3).astype(np.float32)


def tint(values: np.ndarray, dark: Sequence[float], light: Sequence[float]) -> np.ndarray:
    """Map values (H, W) in [0, 1] onto the line between two colours, float32 (H, W, 3)."""
    dark, light = np.asarray(dark, np.float32), np.asarray(light, np.float32)
    return dark + values[..., None] * (light - dark)


def curve(points: Sequence[Point], steps: int = 10) -> list[Point]:
    """Return a Catmull-Rom spline through ``points`` as a polyline, ``steps`` pieces a span."""
    controls = np.asarray([points[0], *points, points[-1]], float)
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    pieces = []
    for p0, p1, p2, p3 in zip(controls, controls[1:], controls[2:], controls[3:], strict=False):
        pieces.append(
            0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
        )
    line = np.concatenate([*pieces, controls[-1:]])
    return [tuple(point) for point in line]


class Mask:
    """A grey canvas with unit coordinates: (0, 0) is the upper left corner, (1, 1) the lower right."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size
        self.image = Image.new("L", (size, size), 0)
        self.draw = ImageDraw.Draw(self.image)

    def _pixels(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self.size, y * self.size) for x, y in points]

    def polygon(self, points: Sequence[Point], fill: float = 1.0) -> "Mask":
        """Fill a polygon with a grey value in [0, 1]."""
        self.draw.polygon(self._pixels(points), fill=round(255 * fill))
        return self

    def stroke(self, points: Sequence[Point], width: float, fill: float = 1.0) -> "Mask":
        """Draw a polyline with round ends; ``width`` is a fraction of the canvas."""
        pixels, value = self._pixels(points), round(255 * fill)
        thick = max(1, round(width * self.size))
        self.draw.line(pixels, fill=value, width=thick, joint="curve")
        radius = thick / 2
        for x, y in (pixels[0], pixels[-1]):
            self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=value)
        return self

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: float = 1.0) -> "Mask":
        """Fill an ellipse with centre (x, y) and radii (rx, ry)."""
        s = self.size
        self.draw.ellipse(((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s), fill=round(255 * fill))
        return self

    def array(self) -> np.ndarray:
        """Return the canvas, float32 (size, size) in [0, 1]."""
        return np.asarray(self.image, np.float32) / 255


def affine(
    image: np.ndarray,
    angle: float = 0.0,
    shear: float = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
    shift: tuple[float, float] = (0.0, 0.0),
    mode: str = "constant",
) -> np.ndarray:
    """Turn (radians), slant, stretch (x, y) and shift (fractions) a mask (H, W) about its centre."""
    c, s = np.cos(angle), np.sin(angle)
    forward = np.array([[c, -s], [s, c]]) @ np.array([[1, 0], [shear, 1]]) @ np.diag([scale[1], scale[0]])
    inverse = np.linalg.inv(forward)
    centre = (np.array(image.shape) - 1) / 2
    moved = centre + np.array([shift[1], shift[0]]) * image.shape[0]
    return ndimage.affine_transform(image, inverse, centre - inverse @ moved, order=1, mode=mode)


def elastic(rng: Generator, image: np.ndarray, amount: float, smooth: float = 8.0) -> np.ndarray:
    """Displace pixels of a mask (H, W) by smooth random fields of about ``amount`` pixels."""
    size = image.shape[0]
    coarse = max(4, int(size / smooth))
    fields = [
        ndimage.zoom(rng.standard_normal((coarse, coarse)), size / coarse, order=1)[:size, :size] * amount
        for _ in range(2)
    ]
    y, x = np.mgrid[0:size, 0:size]
    return ndimage.map_coordinates(image, [y + fields[0], x + fields[1]], order=1, mode="constant")


def crop_to_ink(mask: np.ndarray, threshold: float = 0.2) -> np.ndarray:
    """Cut a mask (H, W) to the box of what is above ``threshold``; an empty mask comes back whole."""
    ys, xs = np.nonzero(mask > threshold)
    if len(ys) == 0:
        return mask
    return mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]


def resize(array: np.ndarray, height: int, width: int, how: int = Image.Resampling.BILINEAR) -> np.ndarray:
    """Resize a mask (H, W) or an image (H, W, 3), float32 in [0, 1], through pillow's filters."""
    if array.ndim == 2:
        return np.asarray(Image.fromarray(np.ascontiguousarray(array, np.float32)).resize((width, height), how))
    return np.stack([resize(array[..., c], height, width, how) for c in range(3)], axis=-1)
