import torch

from lightning_modules.text_heads import cached_class_vectors, class_prompts, class_vectors
from mergers.files import cache_folder


def encode(texts):
    generator = {text: torch.Generator().manual_seed(sum(map(ord, text))) for text in texts}
    return torch.stack([torch.randn(6, generator=generator[text]) * len(text) for text in texts])


PROMPTS = class_prompts(["cat", "dog", "newt"], ["a photo of a {}.", "the {}"])


def test_vectors_are_normalised_means_of_normalised_embeddings():
    vectors = class_vectors(PROMPTS, encode)
    for vector, group in zip(vectors, PROMPTS, strict=True):
        units = [embedding / embedding.norm() for embedding in encode(group)]
        mean = sum(units) / len(units)
        torch.testing.assert_close(vector, mean / mean.norm())


def test_chunks_change_nothing():
    torch.testing.assert_close(class_vectors(PROMPTS, encode, batch_size=1), class_vectors(PROMPTS, encode))


def test_second_time_needs_no_text_tower(tmp_path, monkeypatch):
    monkeypatch.setenv("SHEETBEND_CACHE", str(tmp_path))
    first = cached_class_vectors(PROMPTS, "model-a", lambda: encode)

    def fail():
        raise AssertionError("the text tower was loaded again")

    torch.testing.assert_close(cached_class_vectors(PROMPTS, "model-a", fail), first)
    assert len(list(cache_folder("heads").iterdir())) == 1
    cached_class_vectors(PROMPTS[:2], "model-a", lambda: encode)
    cached_class_vectors(PROMPTS, "model-b", lambda: encode)
    assert len(list(cache_folder("heads").iterdir())) == 3


def test_a_damaged_cache_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("SHEETBEND_CACHE", str(tmp_path))
    first = cached_class_vectors(PROMPTS, "model-a", lambda: encode)
    next(cache_folder("heads").iterdir()).write_bytes(b"not safetensors")
    torch.testing.assert_close(cached_class_vectors(PROMPTS, "model-a", lambda: encode), first)


def test_an_unwritable_cache_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SHEETBEND_CACHE", str(tmp_path / "file"))
    assert cached_class_vectors(PROMPTS, "model-a", lambda: encode).shape == (3, 6)
