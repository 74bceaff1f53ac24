import pytest

from tests.launch.merging import write_adapter


@pytest.fixture
def wide(monkeypatch):
    """Print lines so wide that no path is folded, however long the name of the test's folder."""
    monkeypatch.setenv("COLUMNS", "400")


@pytest.fixture
def adapters(tmp_path):
    return [write_adapter(tmp_path / "runs" / name, seed) for seed, name in enumerate(("pets", "cars", "food"))]


@pytest.fixture
def merged(tmp_path):
    return tmp_path / "merged"
