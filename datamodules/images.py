"""From a picture as it stands in a data set to the uint8 square that a vision model takes."""

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from mergers.errors import SheetbendError

# Encoded (PNG, JPEG, ...) or decoded: uint8 (H, W) or (H, W, 3).
Raw = bytes | np.ndarray

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
# Preprocessor configurations give Pillow's numbers.
_NUMBERS = {int(value): name for name, value in INTERPOLATIONS.items()}
# What pictures may be written in. Pillow knows more, by their first bytes, and gives some of it to other programs.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM")
# Pixels that a picture may have, before and after its resize: Pillow's own limit, above which it only warns.
MOST_PIXELS = 89_478_485
_WIDE = ("I", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class ImageTransform:
    """Resize and crop a picture of any size and mode as published evaluation code does, before scaling to float.

    Attributes:
        size: side of the square that comes out, in pixels.
        resize: what the shortest side becomes before the crop; none: ``size``.
        fit: ``crop`` keeps the proportions and cuts the centre out; ``squash`` resizes both sides to ``size``.
        interpolation: nearest, bilinear, bicubic or lanczos, Pillow's, which smooths when it makes a picture smaller.
        rounding: where the centre lies if an odd number of pixels is cut off: ``down`` as transformers has it, ``even``
            as torchvision, OpenAI's CLIP and open_clip have it.
    """

    size: int = 224
    resize: int | None = None
    fit: Literal["crop", "squash"] = "crop"
    interpolation: str = "bicubic"
    rounding: Literal["down", "even"] = "down"

    def __post_init__(self) -> None:
        for name, value in (("size", self.size), ("resize", self.short_side)):
            if not isinstance(value, int) or value < 1:
                raise SheetbendError(f"image {name} is {value}; give a number of pixels of at least 1")
        if self.short_side < self.size:
            raise SheetbendError(
                f"image resize is {self.resize}, below the size {self.size}; give at least the size, or none"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise SheetbendError(
                f"image interpolation {self.interpolation!r} is unknown; give one of {', '.join(INTERPOLATIONS)}"
            )

    @classmethod
    def from_processor(cls, config: Mapping[str, Any]) -> "ImageTransform":
        """Return what a transformers ``preprocessor_config.json`` describes.

        Args:
            config: its content, with what the processor's class adds to it. A size that is left out is 224, the
                interpolation bicubic.

        Raises:
            SheetbendError: it asks for rectangles, padding or an interpolation that Pillow has not.
        """
        size = _sides(config.get("size", 224))
        cropped = config.get("do_center_crop", "crop_size" in config)
        crop = _sides(config.get("crop_size", size)) if cropped else size
        interpolation = _NUMBERS.get(config.get("resample", 3))
        if interpolation is None:
            raise SheetbendError(f"image resample {config['resample']} is unknown; give one of {sorted(_NUMBERS)}")
        if not config.get("do_resize", True):
            raise SheetbendError("image do_resize is false, so pictures would have any size; give a model that resizes")
        if "shortest_edge" in size:
            short = size["shortest_edge"]
            # Without a crop pictures would keep their proportions, and a batch needs one size.
            side = _square(crop) if cropped else short
            return cls(side, short, "crop", interpolation)
        side = _square(size)
        if cropped and _square(crop) != side:
            raise SheetbendError(
                f"image size {side} and crop_size {_square(crop)} of squashed pictures differ; give one size"
            )
        return cls(side, None, "squash", interpolation)

    @classmethod
    def from_open_clip(cls, config: Mapping[str, Any]) -> "ImageTransform":
        """Return what open_clip's ``preprocess_cfg`` describes (size, resize_mode, interpolation)."""
        size, mode = config.get("size", 224), config.get("resize_mode", "shortest")
        sides = set(size) if isinstance(size, (tuple, list)) else {size}
        if mode not in ("shortest", "squash") or len(sides) != 1:
            raise SheetbendError(
                f"image size {size} with resize_mode {mode!r}: squares by 'shortest' or 'squash' are what can be made; "
                "give another model"
            )
        fit = "crop" if mode == "shortest" else "squash"
        interpolation = "bilinear" if config.get("interpolation") == "bilinear" else "bicubic"
        return cls(int(sides.pop()), None, fit, interpolation, "even")

    @property
    def short_side(self) -> int:
        """The shortest side before the crop, in pixels."""
        return self.size if self.resize is None else self.resize

    @property
    def key(self) -> str:
        """A name that two transforms share only if they do the same; for caches."""
        return f"{self.fit}-{self.size}-{self.short_side}-{self.interpolation}-{self.rounding}"

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return uint8 (3, ``size``, ``size``), channels red, green, blue."""
        image = to_rgb(image)
        if self.fit == "squash":
            target = (self.size, self.size)
        else:
            short, long = sorted(image.size)
            # In whole numbers, rounded down, as torchvision and transformers have it.
            longer = int(self.short_side * long / short)
            target = (self.short_side, longer) if image.width <= image.height else (longer, self.short_side)
        if image.size != target:
            _require_pixels(*target)
            image = image.resize(target, INTERPOLATIONS[self.interpolation])
        left, top = (self._offset(side) for side in image.size)
        pixels = np.asarray(image)[top : top + self.size, left : left + self.size]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _offset(self, side: int) -> int:
        cut = side - self.size
        return cut // 2 if self.rounding == "down" else round(cut / 2)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return ``image`` in mode RGB: grey in all channels, palettes looked up, transparency dropped, 16 bits to 8.

    The orientation of EXIF is ignored, as in the published code.
    """
    if image.mode == "RGB":
        return image
    if image.mode in _WIDE:
        # Pillow would cut what is above 255; the high byte is the picture.
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values >> 8 if values.max() > 255 else values).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def open_image(raw: Raw) -> Image.Image:
    """Return the picture of ``raw``; whatever Pillow raises for bytes that are none is left to the caller."""
    if isinstance(raw, np.ndarray):
        return Image.fromarray(raw)
    image = unread(raw)
    _require_pixels(*image.size)
    image.load()
    return image


def unread(raw: bytes) -> Image.Image:
    """Return the picture of an encoded ``raw`` before any pixel is decoded; raises what Pillow does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # this limit is an error here
        return Image.open(io.BytesIO(raw), formats=FORMATS)


def _require_pixels(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width} x {height} are more than {MOST_PIXELS:,} pixels")


def _sides(size: int | Mapping[str, int]) -> Mapping[str, int]:
    return {"shortest_edge": size} if isinstance(size, int) else size


def _square(size: Mapping[str, int]) -> int:
    if "shortest_edge" in size:
        return size["shortest_edge"]
    if not {"height", "width"} <= set(size) or size["height"] != size["width"]:
        raise SheetbendError(f"image size {dict(size)} is no square; give a model that takes squares")
    return size["height"]
