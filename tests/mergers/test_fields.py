"""Settings of a merge by name."""

import pytest

from mergers import Dare, Merger, SheetbendError, Ties
from mergers.fields import find_setting, settings_of, with_setting

TWICE = Merger("full", Ties(density=0.2), [Dare(0.1), Dare(0.5, seed=1)])


@pytest.mark.parametrize("name", ["Dare.drop_rate", "drop_rate"])
def test_a_name_that_two_steps_have_is_refused_with_both(name):
    with pytest.raises(SheetbendError, match=r"transforms\.0\.drop_rate or transforms\.1\.drop_rate"):
        find_setting(TWICE, name)


def test_the_whole_name_says_which_step():
    found = settings_of(with_setting(TWICE, "transforms.1.drop_rate", 0.7))
    assert (found["transforms.0.drop_rate"], found["transforms.1.drop_rate"]) == (0.1, 0.7)


def test_a_class_stands_for_the_place_of_its_only_step():
    assert find_setting(TWICE, "Ties.density") == "method.density"


def test_the_nearest_name_is_given():
    with pytest.raises(SheetbendError, match="did you mean 'density'"):
        find_setting(TWICE, "densty")
