"""What labels mean: one rule for pictures and for texts."""

import pytest

from datamodules.own_data import label_positions
from mergers import SheetbendError


@pytest.mark.parametrize(
    ("labels", "class_names", "classes", "positions"),
    [
        (["gull", "finch"], ["finch", "gull"], ("finch", "gull"), [1, 0]),
        (["1", "0"], ["finch", "gull"], ("finch", "gull"), [1, 0]),
        (["1", "0"], None, ("finch", "gull"), [1, 0]),
        (["1", "0"], ["1", "0"], ("1", "0"), [0, 1]),
        (["1", "", "x"], {1: "gull", "": None, "x": "finch"}, ("finch", "gull"), [1, -1, 0]),
    ],
)
def test_what_labels_mean(labels, class_names, classes, positions):
    assert label_positions(labels, class_names, classes, str).tolist() == positions


@pytest.mark.parametrize(
    ("labels", "class_names", "message"),
    [
        (
            ["0", "1"],
            ["4", "5"],
            "0: label '0' is none of the classes 4, 5; correct it, or say in a map",
        ),
        (["0", "1"], ["0", "gull"], "1: label '1' is none of the classes 0, gull"),
        (["0", "gull"], ["finch", "gull"], "0: label '0' is none of the classes finch, gull"),
        (["0", "2"], ["finch", "gull"], "1: label '2' is outside the range 0 to 1 of the classes finch, gull"),
        (["0", "-1"], ["finch", "gull"], "1: label '-1' is outside the range 0 to 1"),
        (["gul"], ["finch", "gull"], r"0: label 'gul' is none of .* \(did you mean 'gull'\?\)"),
        (["gull", ""], ["finch", "gull"], "1: there is no label"),
        (["0"], {1: "gull"}, "0: label '0' is none of the classes 1;"),
    ],
)
def test_labels_that_mean_nothing_are_refused(labels, class_names, message):
    classes = ("gull",) if isinstance(class_names, dict) else class_names
    with pytest.raises(SheetbendError, match=f"^{message}") as caught:
        label_positions(labels, class_names, classes, str)
    assert "\n" not in str(caught.value)
