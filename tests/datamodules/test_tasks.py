import pytest

from datamodules import Task
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
    ],
)
def test_tasks_that_cannot_be_meant_are_refused(arguments, message):
    with pytest.raises(SheetbendError, match=message):
        Task(*arguments)
