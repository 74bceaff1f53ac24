import dataclasses
import json
import random
from pathlib import Path

import pytest
from torchvision import datasets as torchvision_datasets

from datamodules.label_space import joint_label_space, joint_labels
from datamodules.sources.hub import Hub
from datamodules.tasks import Task
from datamodules.vision_tasks import VISION_8, VISION_14, VISION_20, VISION_TASKS, VisionTask, plain_name
from mergers.errors import SheetbendError

FACTS = Path(__file__).parents[3] / "shared" / "facts"
needs_facts = pytest.mark.skipif(not FACTS.exists(), reason=f"no folder {FACTS} with the published names and prompts")

CLASSES = {
    "stanford_cars": 196,
    "dtd": 47,
    "eurosat": 10,
    "gtsrb": 43,
    "mnist": 10,
    "resisc45": 45,
    "sun397": 397,
    "svhn": 10,
    "cifar100": 100,
    "stl10": 10,
    "flowers102": 102,
    "oxford_iiit_pet": 37,
    "pcam": 2,
    "fer2013": 7,
    "emnist": 10,
    "cifar10": 10,
    "food101": 101,
    "fashion_mnist": 10,
    "rendered_sst2": 2,
    "kmnist": 10,
}
EUROSAT_FOLDERS = [
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
]
# Spellings of sources, in the order of the class names.
IN_ORDER = {
    "eurosat folders": ("eurosat", EUROSAT_FOLDERS),
    "gtsrb folders": ("gtsrb", [f"{i:05d}" for i in range(43)]),
    "gtsrb numbers": ("gtsrb", [str(i) for i in range(43)]),
    "mnist of torchvision": ("mnist", torchvision_datasets.MNIST.classes),
    "svhn on the hub": ("svhn", list("0123456789")),
    "emnist digits of torchvision": ("emnist", torchvision_datasets.EMNIST.classes_split_dict["digits"]),
    "fashion_mnist of torchvision": ("fashion_mnist", torchvision_datasets.FashionMNIST.classes),
    "fashion_mnist on the hub": (
        "fashion_mnist",
        [
            "T - shirt / top",
            *["Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"],
            "Ankle boot",
        ],
    ),
    "kmnist of torchvision": ("kmnist", torchvision_datasets.KMNIST.classes),
    "kmnist on the hub": ("kmnist", list("おきすつなはまやれを")),
    "flowers102 of torchvision": ("flowers102", torchvision_datasets.Flowers102.classes),
    "cifar10": ("cifar10", ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]),
    "stl10": ("stl10", ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]),
    "fer2013, original numbers": ("fer2013", ["Angry", "Disgust", "Fear", "Happy", "Sad", "Surprise", "Neutral"]),
    "pcam of another copy": ("pcam", ["0", "1"]),
    "pcam, values": ("pcam", ["False", "True"]),
    "rendered_sst2": ("rendered_sst2", ["negative", "positive"]),
}


def own(classes=("red car", "blue car"), **options):
    """A declaration of one's own, of two classes."""
    given = {
        "task": Task("cars", classes),
        "hub": Hub("someone/cars"),
        "splits": {"train": "train", "val": None, "test": "test"},
        "counts": {"train": 2, "test": 2},
        "layout": None,
    }
    return VisionTask(**{**given, **options})


def test_the_sets_of_the_papers():
    assert VISION_20 == tuple(VISION_TASKS) == tuple(CLASSES)
    assert VISION_20[:14] == VISION_14 and VISION_14[:8] == VISION_8


@pytest.mark.parametrize("name", VISION_20)
def test_a_declaration_is_whole(name):
    entry = VISION_TASKS[name]
    assert entry.task.name == entry.layout == name
    assert len(entry.task.class_names) == CLASSES[name]
    assert len({plain_name(one) for one in entry.task.class_names}) == CLASSES[name]
    assert entry.task.templates and all(template.count("{}") == 1 for template in entry.task.templates)
    assert all(count > 0 for count in entry.counts.values())
    assert {key for key, split in entry.splits.items() if split} == set(entry.counts)
    assert entry.caveat is None or entry.caveat.startswith(f"{name}: ")


def test_aliases_stand_for_classes_that_they_do_not_hide():
    for entry in VISION_TASKS.values():
        for alias, name in entry.aliases.items():
            assert entry.labels_of([alias]) == [entry.task.class_names.index(name)]


@pytest.mark.parametrize("name", VISION_20)
def test_names_are_matched_in_any_order_and_spelling(name):
    entry = VISION_TASKS[name]
    order = list(range(CLASSES[name]))
    random.Random(0).shuffle(order)
    spellings = (str.upper, lambda one: one.replace(" ", "_"), lambda one: one.replace("_", " ").title())
    for spell in spellings:
        assert entry.labels_of([spell(entry.task.class_names[label]) for label in order]) == order


@pytest.mark.parametrize("source", IN_ORDER)
def test_each_known_spelling_of_a_source(source):
    name, spellings = IN_ORDER[source]
    assert VISION_TASKS[name].labels_of(spellings) == list(range(CLASSES[name]))


@pytest.mark.parametrize("spell", ["/{0}/{1}", "{0}/{1}", "{0}_{1}", "/{0}/{2}", "{2}"])
def test_the_letter_folder_of_sun397_is_dropped(spell):
    entry = VISION_TASKS["sun397"]
    kinds = ("indoor", "outdoor", "interior", "exterior")

    def folder(name):
        words = name.split()
        inner = "_".join(words[:-1]) + "/" + words[-1] if words[-1] in kinds else "_".join(words)
        return spell.format(name[0], name.replace(" ", "_"), inner)

    assert entry.labels_of([folder(name) for name in entry.task.class_names]) == list(range(397))


def test_spellings_that_a_rule_of_thumb_would_miss():
    for name, spelling, class_name in [
        ("cifar100", "cra", "crab"),
        ("flowers102", "ball moss", "air plant"),
        ("stanford_cars", "Ram C-V Cargo Van Minivan 2012", "Ram C/V Cargo Van Minivan 2012"),
        ("oxford_iiit_pet", "american_pit_bull_terrier", "American Pit Bull Terrier"),
        ("food101", "apple pie", "apple_pie"),
        ("resisc45", "mobile_home_park", "mobile home park"),
        ("eurosat", "sea or lake", "lake or sea"),
        ("dtd", "polka_dotted", "polka-dotted"),
    ]:
        entry = VISION_TASKS[name]
        assert entry.labels_of([spelling]) == [entry.task.class_names.index(class_name)]


def test_the_order_of_a_copy_does_not_count():
    entry = VISION_TASKS["food101"]  # the hub has these two the other way round
    first = entry.task.class_names.index("cheese_plate")
    assert entry.labels_of(["ceviche", "cheesecake", "cheese_plate"]) == [first - 1, first + 1, first]


def test_numbers_without_names_mean_what_the_declaration_says():
    assert VISION_TASKS["emnist"].labels_of() == list(range(10))
    assert VISION_TASKS["pcam"].labels_of() == [0, 1]
    assert VISION_TASKS["fer2013"].labels_of() == [0, 1, 2, 3, 6, 4, 5]
    with pytest.raises(SheetbendError, match="task dtd: its labels are numbers without class names"):
        VISION_TASKS["dtd"].labels_of()


def test_an_unknown_name_is_refused_with_the_nearest_ones():
    with pytest.raises(SheetbendError, match=r"class '/a/abey' of the source is none of its 397 \(.*'abbey'") as error:
        VISION_TASKS["sun397"].labels_of(["/a/abey"])
    assert "\n" not in str(error.value) and "aliases" in str(error.value)


def test_two_names_of_one_class_are_refused():
    with pytest.raises(SheetbendError, match="'0' and 'zero' are all class '0'"):
        VISION_TASKS["mnist"].labels_of(["0", "1", "zero"])


def test_declarations_that_cannot_be_right_are_refused():
    with pytest.raises(SheetbendError, match="alias 'crimson' is for 'red', which is no class"):
        own(aliases={"crimson": "red"})
    with pytest.raises(SheetbendError, match="'red-car' stands for 'blue car' and for 'red car'"):
        own(aliases={"red-car": "blue car"})
    with pytest.raises(SheetbendError, match="'red_car' stands for 'red_car' and for 'red car'"):
        own(("red car", "red_car"))
    with pytest.raises(SheetbendError, match="class 'green' of the source is none of its 2"):
        own(label_names=("green", "red car"))
    with pytest.raises(SheetbendError, match="splits name train, val and test"):
        own(counts={"train": 2, "val": 1, "test": 2})
    assert dataclasses.replace(own(), aliases={"crimson": "red car"}).labels_of(["Crimson"]) == [0]


def test_the_joint_label_space_of_the_eight_tasks():
    tasks = [VISION_TASKS[name].task for name in VISION_8]
    published, by_name = joint_labels(tasks), joint_labels(tasks, by_name=True)
    assert len(published) == 748 and len(by_name) == 736
    owners = {}
    for owner, name in published.names:
        owners.setdefault(name, []).append(owner)
    assert sum(len(of) > 1 for of in owners.values()) == 11
    assert sorted({len(of) for of in owners.values()}) == [1, 2, 3]
    assert published.columns["mnist"] == published.columns["svhn"]
    assert joint_label_space(VISION_8) == published.columns
    assert joint_label_space(VISION_8, by_name=True) == by_name.columns
    assert joint_label_space(VISION_20)["emnist"] == published.columns["mnist"]
    with pytest.raises(SheetbendError, match=r"unknown task 'minst'.*\(did you mean 'mnist'\?\)"):
        joint_label_space(["minst"])
    with pytest.raises(SheetbendError, match=r"task_names is 'mnist', one name; give a list of names, \['mnist'\] for"):
        joint_label_space("mnist")


@needs_facts
def test_names_and_prompts_of_the_eight_are_the_published_ones():
    names = json.loads((FACTS / "class_names_8vision.json").read_text())
    templates = json.loads((FACTS / "clip_templates_8vision.json").read_text())
    assert set(names) == set(templates) == set(VISION_8)
    for name in VISION_8:
        assert list(VISION_TASKS[name].task.class_names) == names[name]
        assert list(VISION_TASKS[name].task.templates) == templates[name]
