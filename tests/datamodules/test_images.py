import io

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from transformers import CLIPImageProcessor, ViTImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from datamodules.images import ImageTransform, open_image, to_rgb
from mergers import SheetbendError

SHAPES = [(40, 57), (57, 40), (24, 24), (13, 30), (61, 17), (24, 31)]


def picture(height, width, seed=0):
    """A smooth picture with some noise: differences of rounding show, ringing does not rule."""
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((pixels + generator.integers(-9, 10, pixels.shape)).clip(0, 255).astype(np.uint8))


def levels(processor, image):
    """What a processor of transformers gives, back in levels of 255."""
    out = processor(image, do_normalize=False, return_tensors="pt")["pixel_values"][0]
    return (out * 255).round().to(torch.int64).numpy()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("resize", [24, 29])
def test_it_is_what_clip_processors_give(shape, resize):
    settings = {"size": {"shortest_edge": resize}, "crop_size": {"height": 24, "width": 24}, "resample": 3}
    ours = ImageTransform.from_processor({**settings, "do_center_crop": True})(picture(*shape))
    assert ours.dtype == np.uint8 and ours.shape == (3, 24, 24)
    assert (ours == levels(CLIPImageProcessorPil(**settings), picture(*shape))).all()
    # torchvision resizes tensors with weights of its own precision.
    assert abs(ours.astype(int) - levels(CLIPImageProcessor(**settings), picture(*shape))).max() <= 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_it_is_what_open_clip_gives(shape, mode, interpolation):
    config = PreprocessCfg(size=24, resize_mode=mode, interpolation=interpolation, mean=(0, 0, 0), std=(1, 1, 1))
    theirs = (image_transform_v2(config, is_train=False)(picture(*shape)) * 255).round().numpy()
    assert (ImageTransform.from_open_clip(vars(config))(picture(*shape)) == theirs).all()


def test_a_vit_squashes():
    settings = {"size": {"height": 24, "width": 24}, "resample": 2}
    ours = ImageTransform.from_processor(settings)
    assert (ours.fit, ours.interpolation) == ("squash", "bilinear")
    assert abs(ours(picture(40, 57)).astype(int) - levels(ViTImageProcessor(**settings), picture(40, 57))).max() <= 1


def test_a_crop_of_an_odd_number_of_pixels_follows_its_library():
    columns = Image.fromarray(np.tile(np.arange(27, dtype=np.uint8), (24, 1)))
    assert ImageTransform(24)(columns)[0, 0, 0] == 1
    assert ImageTransform(24, rounding="even")(columns)[0, 0, 0] == 2


def test_every_mode_becomes_colours():
    rgb = picture(9, 7)
    pixels = np.asarray(rgb)
    assert (np.asarray(to_rgb(rgb)) == pixels).all()
    grey = np.asarray(rgb.convert("L"))
    for image in (Image.fromarray(grey), Image.fromarray(grey).convert("LA")):
        assert (np.asarray(to_rgb(image)) == grey[..., None]).all()
    wide = Image.fromarray((grey.astype(np.uint16) << 8) + 7)
    assert (np.asarray(to_rgb(wide)) == grey[..., None]).all()
    transparent = np.dstack([pixels, np.zeros((9, 7), np.uint8)])
    assert (np.asarray(to_rgb(Image.fromarray(transparent))) == pixels).all()
    palette = rgb.quantize(16)
    assert (np.asarray(to_rgb(palette)) == np.asarray(palette.convert("RGB"))).all()
    black_and_white = Image.fromarray(grey > 100)
    assert set(np.asarray(to_rgb(black_and_white)).ravel()) == {0, 255}
    cmyk = to_rgb(rgb.convert("CMYK"))
    assert abs(np.asarray(cmyk).astype(int) - pixels).max() <= 1


def test_a_palette_with_transparency_comes_from_its_file_without_a_warning(recwarn):
    file = io.BytesIO()
    picture(9, 7).quantize(16).save(file, "PNG", transparency=bytes(range(16)))
    assert ImageTransform(5)(open_image(file.getvalue())).shape == (3, 5, 5)
    assert not recwarn.list


def test_orientation_of_exif_is_ignored():
    exif = Image.Exif()
    exif[274] = 6
    turned, plain = io.BytesIO(), io.BytesIO()
    picture(9, 7).save(turned, "PNG", exif=exif)
    picture(9, 7).save(plain, "PNG")
    assert (ImageTransform(5)(open_image(turned.getvalue())) == ImageTransform(5)(open_image(plain.getvalue()))).all()


def test_keys_differ_where_pixels_may():
    transforms = [
        ImageTransform(),
        ImageTransform(32),
        ImageTransform(resize=256),
        ImageTransform(fit="squash"),
        ImageTransform(interpolation="bilinear"),
        ImageTransform(rounding="even"),
    ]
    assert len({one.key for one in transforms}) == len(transforms)
    assert ImageTransform(resize=224).key == ImageTransform().key


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageTransform(0), "image size is 0"),
        (lambda: ImageTransform(224, 200), "image resize is 200, below the size 224"),
        (lambda: ImageTransform(interpolation="cubic"), "image interpolation 'cubic' is unknown; give one of nearest"),
        (lambda: ImageTransform.from_processor({"size": {"height": 3, "width": 4}}), "is no square"),
        (lambda: ImageTransform.from_processor({"resample": 9}), "image resample 9 is unknown"),
        (lambda: ImageTransform.from_processor({"do_resize": False}), "do_resize is false"),
        (lambda: ImageTransform.from_open_clip({"resize_mode": "longest"}), "resize_mode 'longest'"),
    ],
)
def test_what_cannot_be_made_is_refused(make, message):
    with pytest.raises(SheetbendError, match=message):
        make()


def bomb(width, height):
    """A PNG of a few kilobytes of one colour."""
    out = io.BytesIO()
    Image.new("1", (width, height)).save(out, "PNG", optimize=True)
    return out.getvalue()


@pytest.mark.parametrize("size", [(20_000, 20_000), (11_000, 9_000)])
def test_a_picture_that_would_fill_memory_is_no_picture(size):
    """Pillow warns of what has more than 89 million pixels, and refuses twice as many."""
    with pytest.raises((ValueError, Image.DecompressionBombError), match="pixels"):
        open_image(bomb(*size))


def test_a_line_is_not_made_a_thousand_times_as_long():
    """One pixel high and ten million wide: resized to 224 it would have 500 thousand million pixels."""
    line = open_image(bomb(10_000_000, 1))
    with pytest.raises(ValueError, match="pixels"):
        ImageTransform(224)(line)


def test_pictures_that_other_programs_would_draw_are_none():
    """Pillow gives PostScript to Ghostscript, whatever the file is called."""
    out = io.BytesIO()
    picture(8, 8).save(out, "EPS")
    with pytest.raises(Exception, match="cannot identify"):
        open_image(out.getvalue())
