"""Class vectors on disk."""

import pytest
import torch

from lightning_modules.vector_cache import cached_vectors
from mergers.files import cache_folder


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SHEETBEND_CACHE", str(tmp_path))


def test_vectors_are_made_once_and_read_after():
    made = []

    def make():
        made.append(1)
        return torch.arange(6.0).reshape(2, 3)

    first, again = cached_vectors(["once"], make), cached_vectors(["once"], make)
    assert len(made) == 1 and torch.equal(first, again)


@pytest.mark.parametrize("damage", ["a bit", "the end", "the name", "all"])
def test_damaged_vectors_are_made_anew(damage):
    """A flipped bit in the values too, which the format itself does not notice."""
    expected = cached_vectors([damage], lambda: torch.ones(2, 3))
    (path,) = cache_folder("heads").iterdir()
    content = path.read_bytes()
    changed = {
        "a bit": content[:-1] + bytes([content[-1] ^ 1]),
        "the end": content[:-4],
        "the name": content.replace(b"class_vectors", b"class_vectorz"),
        "all": b"",
    }
    path.write_bytes(changed[damage])
    assert torch.equal(cached_vectors([damage], lambda: torch.ones(2, 3)), expected)
