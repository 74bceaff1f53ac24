from types import SimpleNamespace

import pytest

from datamodules.label_space import joint_labels
from mergers import SheetbendError


def task(name, classes, label_set=None):
    return SimpleNamespace(name=name, class_names=tuple(classes), label_set=label_set)


def test_only_tasks_of_one_label_set_share_classes():
    joint = joint_labels([task("mnist", "012", "digits"), task("land", ["river", "2"]), task("svhn", "210", "digits")])
    assert joint.columns == {"mnist": (0, 1, 2), "land": (3, 4), "svhn": (2, 1, 0)}
    assert len(joint.names) == 5


def test_equal_names_of_different_tasks_stay_apart():
    joint = joint_labels([task("a", ["forest"]), task("b", ["forest"]), task("c", ["forest"], "a")])
    assert len(set(joint.names)) == 3


def test_a_label_set_with_different_classes_is_refused():
    with pytest.raises(SheetbendError, match="tasks a and b share the label set 'x'"):
        joint_labels([task("a", "01", "x"), task("b", "02", "x")])
