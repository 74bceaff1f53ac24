import csv

import pytest

from tests.launch.test_adapt import write_run


@pytest.fixture
def run(tiny_clip, tmp_path):
    """A run folder with adapters of three tasks, and the command that analyses them."""
    folder, words = write_run(tiny_clip, tmp_path, tasks=("hue", "tint", "shade"))
    return folder, lambda *kinds: ["analyse", *kinds, *words[1:]]


@pytest.fixture
def rows():
    """What a CSV file holds, a map a row."""

    def read(path):
        with path.open(newline="") as lines:
            return list(csv.DictReader(lines))

    return read
