import pytest
import torch

from datamodules import ArrayData, Task
from datamodules.tasks import fingerprint
from mergers import SheetbendError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a/b", ("x",), ("{}",)), "task name 'a/b'"),
        (("a.b", ("x",), ("{}",)), "task name 'a.b'"),
        (("all", ("x",), ("{}",)), "none of all, mean"),
        (("a", ("x", "x"), ("{}",)), r"must be there and differ \(x\)"),
        (("a", (), ("{}",)), "must be there"),
        (("a", ("x",), ("a photo",)), "'a photo' has no {}"),
        (("a", ("x",), ("{}",)), "task a: it has one class, x; give 2 or more"),
    ],
)
def test_tasks_that_cannot_be_meant_are_refused(arguments, message):
    with pytest.raises(SheetbendError, match=message):
        Task(*arguments)


def test_fingerprints_follow_references():
    class Answered(ArrayData):
        references = ("yes", "no")

    split = Answered(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]))
    first = fingerprint(split)
    split.references = ("yes", "yes")
    assert fingerprint(split) != first
