"""The 20 image classification tasks of the papers on model merging, as facts.

Eight are those of KnOTS (Stoica et al., ICLR 2025, arXiv 2410.19735) and of Task Arithmetic before it. Six, and six
more, were added by TALL-masks (Wang et al., ICML 2024, arXiv 2405.07813); their class names and prompts are those of
AdaRank (Lee et al., arXiv 2503.22178). docs/datasets.md says where each fact is from and which could not be checked.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources

from datamodules.sources.hub import PARQUET_COPY, Hub
from datamodules.tasks import Task
from mergers.errors import SheetbendError

VISION_8 = ("stanford_cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn")
VISION_14 = (*VISION_8, "cifar100", "stl10", "flowers102", "oxford_iiit_pet", "pcam", "fer2013")
VISION_20 = (*VISION_14, "emnist", "cifar10", "food101", "fashion_mnist", "rendered_sst2", "kmnist")

# The hub's copy has no validation split: it is 20 % of the test split then.
TRAIN_TEST = {"train": "train", "val": None, "test": "test"}
TRAIN_VAL_TEST = {"train": "train", "val": "validation", "test": "test"}


def plain_name(name: str) -> str:
    """Return a class name as it is compared: lower case, one space for all between letters and digits.

    >>> plain_name("Ram C/V Cargo-Van_2012")
    'ram c v cargo van 2012'
    """
    return re.sub(r"[\W_]+", " ", name.casefold()).strip()


@dataclass(frozen=True, kw_only=True)
class VisionTask:
    """One published image task: what its classes are called, where its pictures are, how they are split.

    The class names stand in the order of the numbers that the original files use for them (less one where these begin
    with 1), where they use numbers.

    Attributes:
        task: class names and prompts.
        hub: its copy on the hub.
        image_column: column of the pictures in that copy.
        label_column: column of the labels in that copy.
        splits: for each of ``train``, ``val`` and ``test`` the name of that copy's split; none for ``val``: 20 % of
            the test split.
        counts: published number of examples of each split that is named, by ``train``, ``val`` and ``test``.
        layout: what the original files and folders are read as; none: they cannot be read.
        aliases: other names of classes, {name in a source: class name}; compared like class names, by `plain_name`.
        label_names: classes in the order of the numbers in that copy, where it does not name them itself.
        drop: regular expression of what is taken off the front of a source's class names before they are compared.
        caveat: what a reader of results should know.

    Raises:
        SheetbendError: an alias is of no class, or two classes cannot be told apart by their names.
    """

    task: Task
    hub: Hub
    image_column: str = "image"
    label_column: str = "label"
    splits: Mapping[str, str | None]
    counts: Mapping[str, int]
    layout: str | None
    aliases: Mapping[str, str] = field(default_factory=dict)
    label_names: tuple[str, ...] | None = None
    drop: str = ""
    caveat: str | None = None

    def __post_init__(self) -> None:
        named = {key for key, split in self.splits.items() if split is not None}
        if set(self.splits) != {"train", "val", "test"} or set(self.counts) != named:
            raise SheetbendError(
                f"task {self.task.name}: splits name train, val and test, and counts those of them that the copy has; "
                f"splits are {', '.join(self.splits)}, counts are {', '.join(self.counts)}"
            )
        for alias, name in self.aliases.items():
            if name not in self.task.class_names:
                raise SheetbendError(
                    f"task {self.task.name}: alias {alias!r} is for {name!r}, which is no class; "
                    "give a class name as it stands in class_names"
                )
        self.labels_of(self.task.class_names)
        if self.label_names is not None:
            self.labels_of(self.label_names)

    @cached_property
    def _positions(self) -> dict[str, int]:
        positions: dict[str, int] = {}
        own = {name: name for name in self.task.class_names}
        for known, name in [*own.items(), *self.aliases.items()]:
            position = self.task.class_names.index(name)
            if positions.setdefault(plain_name(known), position) != position:
                raise SheetbendError(
                    f"task {self.task.name}: {known!r} stands for {name!r} and for "
                    f"{self.task.class_names[positions[plain_name(known)]]!r}; let names differ in more than signs"
                )
        return positions

    def labels_of(self, names: Sequence[str] | None = None) -> list[int]:
        """Return the position in ``task.class_names`` of each class of a source.

        Args:
            names: the source's own class names, in the order of its labels: those of a ``ClassLabel`` column, or
                folders; in any order and spelling, and not necessarily all. None: the source has numbers without
                names, whose meaning the declaration knows.

        Raises:
            SheetbendError: a name is of no class, two names are of one class, or there are no names.

        >>> VISION_TASKS["fashion_mnist"].labels_of(["Bag", "T - shirt / top"])
        [8, 0]
        """
        if names is None:
            if self.label_names is None:
                raise SheetbendError(
                    f"task {self.task.name}: its labels are numbers without class names, and what they mean is not "
                    "declared; give labels as names, or a ClassLabel column"
                )
            names = self.label_names
        labels = [self._label_of(name) for name in names]
        if len(set(labels)) < len(labels):
            twice = next(label for label in labels if labels.count(label) > 1)
            both = [repr(name) for name, label in zip(names, labels, strict=True) if label == twice]
            raise SheetbendError(
                f"task {self.task.name}: {' and '.join(both)} are all class {self.task.class_names[twice]!r}; "
                "join them in the source, or rename what is another class"
            )
        return labels

    def _label_of(self, name: str) -> int:
        label = self._positions.get(plain_name(re.sub(f"^(?:{self.drop})", "", name)))
        if label is None:
            raise SheetbendError(
                f"task {self.task.name}: class {name!r} of the source is none of its {len(self.task.class_names)} "
                f"(nearest known names: {self._nearest(name)}); rename it, or add it to the task's aliases in "
                "datamodules/facts/vision_aliases.json"
            )
        return label

    def _nearest(self, name: str) -> str:
        plain = {plain_name(known): known for known in (*self.aliases, *self.task.class_names)}
        close = difflib.get_close_matches(plain_name(name), list(plain), n=3, cutoff=0)
        return ", ".join(repr(plain[word]) for word in close)


def _facts(kind: str) -> dict:
    return json.loads((resources.files("datamodules") / "facts" / f"vision_{kind}.json").read_text("utf-8"))


_CLASS_NAMES, _TEMPLATES, _ALIASES = _facts("class_names"), _facts("templates"), _facts("aliases")


def _task(name: str, label_set: str | None = None) -> Task:
    return Task(name, tuple(_CLASS_NAMES[name]), tuple(_TEMPLATES[name]), label_set=label_set)


# torchvision says `0 - zero`.
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_DIGITS = {spelling: str(i) for i, word in enumerate(_WORDS) for spelling in (word, f"{i} - {word}")}
# The original folders are 00000 to 00042; some copies say 0 to 42.
_SIGNS = {spelling: name for i, name in enumerate(_CLASS_NAMES["gtsrb"]) for spelling in (f"{i:05d}", str(i))}

VISION_TASKS: dict[str, VisionTask] = {
    entry.task.name: entry
    for entry in (
        VisionTask(
            task=_task("stanford_cars"),
            hub=Hub("tanganke/stanford_cars"),
            splits=TRAIN_TEST,
            counts={"train": 8144, "test": 8041},
            layout="stanford_cars",
            caveat="stanford_cars: trained on the training split; KnOTS's published code trains on the test split by "
            "mistake, so its accuracy on this task is not comparable.",
        ),
        VisionTask(
            task=_task("dtd"),
            hub=Hub("tanganke/dtd"),  # its training split is the original's train and val
            splits=TRAIN_TEST,
            counts={"train": 3760, "test": 1880},
            layout="dtd",
        ),
        VisionTask(
            task=_task("eurosat"),
            hub=Hub("tanganke/eurosat"),
            splits=TRAIN_TEST,
            counts={"train": 21600, "test": 2700},
            layout="eurosat",
            aliases=_ALIASES["eurosat"],
        ),
        VisionTask(
            task=_task("gtsrb"),
            hub=Hub("tanganke/gtsrb"),
            splits=TRAIN_TEST,
            counts={"train": 26640, "test": 12630},
            layout="gtsrb",
            aliases=_SIGNS,
        ),
        VisionTask(
            task=_task("mnist", "digits"),
            hub=Hub("ylecun/mnist", "mnist"),
            splits=TRAIN_TEST,
            counts={"train": 60000, "test": 10000},
            layout="mnist",
            aliases=_DIGITS,
        ),
        VisionTask(
            task=_task("resisc45"),
            hub=Hub("tanganke/resisc45"),
            splits=TRAIN_TEST,
            counts={"train": 18900, "test": 6300},
            layout="resisc45",
        ),
        VisionTask(
            task=_task("sun397"),
            hub=Hub("tanganke/sun397"),
            splits=TRAIN_TEST,
            counts={"train": 19850, "test": 19850},
            layout="sun397",
            drop="/?[a-z][/_]",  # the letter folder of /a/abbey, and of a_abbey
        ),
        VisionTask(
            task=_task("svhn", "digits"),
            hub=Hub("ufldl-stanford/svhn", "cropped_digits"),
            splits=TRAIN_TEST,
            counts={"train": 73257, "test": 26032},
            layout="svhn",
            aliases=_DIGITS,
        ),
        VisionTask(
            task=_task("cifar100"),
            hub=Hub("uoft-cs/cifar100", "cifar100"),
            image_column="img",
            label_column="fine_label",
            splits=TRAIN_TEST,
            counts={"train": 50000, "test": 10000},
            layout="cifar100",
            aliases=_ALIASES["cifar100"],
        ),
        VisionTask(
            task=_task("stl10"),
            hub=Hub("tanganke/stl10"),
            splits=TRAIN_TEST,
            counts={"train": 5000, "test": 8000},
            layout="stl10",
        ),
        VisionTask(
            task=_task("flowers102"),
            hub=Hub("dpdl-benchmark/oxford_flowers102"),
            splits=TRAIN_VAL_TEST,
            counts={"train": 1020, "val": 1020, "test": 6149},
            layout="flowers102",
            aliases=_ALIASES["flowers102"],
        ),
        VisionTask(
            task=_task("oxford_iiit_pet"),
            hub=Hub("timm/oxford-iiit-pet"),
            splits=TRAIN_TEST,
            counts={"train": 3680, "test": 3669},
            layout="oxford_iiit_pet",
        ),
        VisionTask(
            task=_task("pcam"),
            hub=Hub("1aurent/PatchCamelyon"),
            splits={"train": "train", "val": "valid", "test": "test"},
            counts={"train": 262144, "val": 32768, "test": 32768},
            layout="pcam",
            aliases=_ALIASES["pcam"],
            label_names=tuple(_CLASS_NAMES["pcam"]),  # false and true
        ),
        VisionTask(
            task=_task("fer2013"),
            hub=Hub("clip-benchmark/wds_fer2013", "default", PARQUET_COPY),
            image_column="jpg",
            label_column="cls",
            splits=TRAIN_TEST,
            counts={"train": 28709, "test": 7178},
            layout="fer2013",
            aliases=_ALIASES["fer2013"],
            # As its classnames.txt has them; the original numbers have neutral last.
            label_names=("angry", "disgusted", "fearful", "happy", "neutral", "sad", "surprised"),
            caveat="fer2013: labels are matched by name; AdaRank's published code gives the prompts of sad, surprised "
            "and neutral to what its source calls neutral, sad and surprise, so its checkpoints answer in that order.",
        ),
        VisionTask(
            task=_task("emnist", "digits"),
            hub=Hub("ernestchu/emnist-digits"),
            splits=TRAIN_TEST,
            counts={"train": 240000, "test": 40000},
            layout="emnist",
            aliases=_DIGITS,
            label_names=tuple(_CLASS_NAMES["emnist"]),
            caveat="emnist: the digits split; the original files have rows and columns exchanged, which the published "
            "code leaves so, and a copy on the hub may be upright.",
        ),
        VisionTask(
            task=_task("cifar10"),
            hub=Hub("uoft-cs/cifar10", "plain_text"),
            image_column="img",
            splits=TRAIN_TEST,
            counts={"train": 50000, "test": 10000},
            layout="cifar10",
        ),
        VisionTask(
            task=_task("food101"),
            hub=Hub("ethz/food101"),
            splits={"train": "train", "val": None, "test": "validation"},  # the original's test split
            counts={"train": 75750, "test": 25250},
            layout="food101",
        ),
        VisionTask(
            task=_task("fashion_mnist"),
            hub=Hub("zalando-datasets/fashion_mnist", "fashion_mnist"),
            splits=TRAIN_TEST,
            counts={"train": 60000, "test": 10000},
            layout="fashion_mnist",
        ),
        VisionTask(
            task=_task("rendered_sst2"),
            hub=Hub("nateraw/rendered-sst2", "default", PARQUET_COPY),
            splits=TRAIN_VAL_TEST,
            counts={"train": 6920, "val": 872, "test": 1821},
            layout="rendered_sst2",
        ),
        VisionTask(
            task=_task("kmnist"),
            hub=Hub("tanganke/kmnist", "kmnist"),
            splits=TRAIN_TEST,
            counts={"train": 60000, "test": 10000},
            layout="kmnist",
            aliases=_ALIASES["kmnist"],
        ),
    )
}
