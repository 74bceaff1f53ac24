"""The cache of alignments: the same bytes, whatever happens to its files."""

import json
import multiprocessing
import os
import time
import warnings
from pathlib import Path

import pytest
import torch
from builders import random_adapter, random_adapters
from safetensors import safe_open

from mergers import Core, DenseUpdate, Full, KnOTS, Merger, SheetbendError
from mergers.cache import AlignmentCache

ODD = {"a": (37, 23), "b": (7, 50)}
SPACES = [KnOTS(), KnOTS(scale_by_singular_values=False), KnOTS(concatenate="outputs"), Core()]


def updates(module="a", **options):
    return [adapter[module] for adapter in random_adapters(3, shapes=ODD, ranks=3, **options)]


def tensors(encoded):
    found = {f"{i}.{k}": t for i, u in enumerate(encoded.coordinates) for k, t in u.tensors().items()}
    return found | {name: t for name in ("left", "right") if (t := getattr(encoded, name)) is not None}


def assert_same(one, other):
    """The same values, lying the same way in memory, so that what is computed of them is the same too."""
    first, second = tensors(one), tensors(other)
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]) and tensor.dtype == second[name].dtype, name
        assert tensor.stride() == second[name].stride(), name


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_what_is_read_is_what_was_made(space, tmp_path):
    cache = AlignmentCache(tmp_path)
    encode = cache.encoder(space)
    for module in ODD:
        made = space.encode(updates(module))
        assert_same(made, encode(updates(module)))
        assert_same(made, encode(updates(module)))
    assert (cache.hits, cache.misses) == (2, 2) and len(cache.entries()) == 2


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_merge_gives_the_same_bytes_without_cache_cold_and_warm(space, tmp_path):
    adapters = random_adapters(3, shapes=ODD, ranks=3)
    merger = Merger(space, "ties")
    plain = merger.merge(adapters)
    cache = AlignmentCache(tmp_path)
    for hits in (0, 2):
        merged = merger.merge(adapters, encode=cache.encoder(space))
        assert cache.hits == hits
        for module, update in plain.items():
            for name, tensor in update.tensors().items():
                assert torch.equal(tensor, merged[module].tensors()[name])


def test_dense_updates_are_cached_too(tmp_path):
    given = [DenseUpdate(update.dense()) for update in updates()]
    cache = AlignmentCache(tmp_path)
    made = cache.encoder(KnOTS())(given)
    assert_same(made, cache.encoder(KnOTS())(given))
    assert cache.hits == 1


def test_data_begin_where_torch_aligns_them(tmp_path):
    """So that reading needs no copy, and products take the same path."""
    for module in ODD:
        AlignmentCache(tmp_path).encoder(Core())(updates(module))
    for path in tmp_path.iterdir():
        assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 64 == 0


def test_a_change_of_anything_is_another_entry(tmp_path):
    cache = AlignmentCache(tmp_path)
    one = updates()
    cache.encoder(KnOTS())(one)
    others = [
        (KnOTS(cutoff=1e-3), one),
        (KnOTS(concatenate="outputs"), one),
        (Core(), one),
        (KnOTS(), one[::-1]),
        (KnOTS(), one[:2]),
        (KnOTS(), [one[0].scaled(2.0), *one[1:]]),
        (KnOTS(), [DenseUpdate(one[0].dense()), *one[1:]]),
    ]
    for space, given in others:
        cache.encoder(space)(given)
    assert cache.hits == 0 and len(cache.entries()) == 1 + len(others)
    cache.encoder(KnOTS())([type(u)(A=u.A.clone(), B=u.B.clone(), scale=u.scale) for u in one])
    assert cache.hits == 1


def test_a_space_without_alignment_is_not_cached(tmp_path):
    AlignmentCache(tmp_path).encoder(Full())(updates())
    assert not list(tmp_path.iterdir())


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def damage_flip(path):
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(bytes(content))


def damage_foreign(path):
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2)}, path)


def damage_garbage(path):
    path.write_bytes(b"not safetensors")


def damage_empty(path):
    path.write_bytes(b"")


def damage_format(path):
    content = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["format"] == "2"
    path.write_bytes(content.replace(b'"format":"2"', b'"format":"0"'))


DAMAGES = [damage_truncate, damage_flip, damage_foreign, damage_garbage, damage_empty, damage_format]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_anew(damage, tmp_path):
    cache = AlignmentCache(tmp_path)
    made = cache.encoder(KnOTS())(updates())
    (entry,) = cache.entries()
    damage(entry.path)
    assert_same(made, cache.encoder(KnOTS())(updates()))
    assert cache.hits == 0
    assert_same(made, cache.encoder(KnOTS())(updates()))
    assert cache.hits == 1


def test_a_folder_in_the_way_costs_one_warning(tmp_path):
    (tmp_path / "file").write_text("")
    cache = AlignmentCache(tmp_path / "file" / "below")
    with pytest.warns(UserWarning, match="alignments are not cached") as caught:
        made = [cache.encoder(KnOTS())(updates(module)) for module in ODD]
    assert len(caught) == 1
    assert_same(made[0], KnOTS().encode(updates("a")))


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    shapes = {f"m{index}": (30, 20) for index in range(6)}
    adapters = random_adapters(2, shapes=shapes, ranks=2)
    AlignmentCache(tmp_path).encoder(KnOTS())([adapter["m0"] for adapter in adapters])
    (entry,) = AlignmentCache(tmp_path).entries()
    cache = AlignmentCache(tmp_path, max_bytes=int(3.5 * entry.size))
    encode = cache.encoder(KnOTS())
    for age, module in enumerate(("m0", "m1", "m2")):
        before = set(tmp_path.iterdir())
        encode([adapter[module] for adapter in adapters])
        for path in (set(tmp_path.iterdir()) - before) or {entry.path}:
            os.utime(path, (time.time() - 1000 + age,) * 2)
    encode([adapter["m0"] for adapter in adapters])  # used: now m1 is the oldest
    encode([adapter["m3"] for adapter in adapters])
    assert cache.size() <= cache.max_bytes
    hits = cache.hits
    encode([adapter["m0"] for adapter in adapters])
    encode([adapter["m3"] for adapter in adapters])
    assert cache.hits == hits + 2
    encode([adapter["m1"] for adapter in adapters])
    assert cache.hits == hits + 2


def test_an_entry_larger_than_the_cache_is_not_written(tmp_path):
    cache = AlignmentCache(tmp_path, max_bytes=100)
    cache.encoder(KnOTS())(updates())
    assert not list(tmp_path.iterdir())
    with pytest.raises(SheetbendError, match="max_bytes of the cache is -1"):
        AlignmentCache(tmp_path, max_bytes=-1)


def test_clearing_takes_the_old_and_what_was_abandoned(tmp_path):
    cache = AlignmentCache(tmp_path)
    for module in ODD:
        cache.encoder(KnOTS())(updates(module))
    old, new = cache.entries()
    os.utime(old.path, (time.time() - 3 * 86400,) * 2)
    temporary = tmp_path / ".abandoned.x.safetensors"
    temporary.write_bytes(b"")
    os.utime(temporary, (time.time() - 3 * 86400,) * 2)
    (tmp_path / "somebody's notes.txt").write_text("")
    assert [entry.path for entry in cache.clear(unused_days=2)] == [old.path]
    assert not temporary.exists() and [entry.path for entry in cache.entries()] == [new.path]
    assert len(cache.clear()) == 1 and [path.name for path in tmp_path.iterdir()] == ["somebody's notes.txt"]


def test_the_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SHEETBEND_CACHE", str(tmp_path))
    assert AlignmentCache().folder == tmp_path / "alignments"
    monkeypatch.delenv("SHEETBEND_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert AlignmentCache().folder == tmp_path / "xdg" / "sheetbend" / "alignments"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert AlignmentCache().folder == Path("~/.cache/sheetbend/alignments").expanduser()


def merge_with_cache(folder, start, results):
    """In another process: merge several times, with a cache so small that entries vanish all the while."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    shapes = {f"m{index}": (20 + index, 15) for index in range(8)}
    adapters = [random_adapter(f"t{i}", shapes, 2, seed=i) for i in range(2)]
    cache = AlignmentCache(folder, max_bytes=30_000)
    start.wait(60)
    sums = []
    for _ in range(5):
        merged = Merger("knots", "mean").merge(adapters, encode=cache.encoder(KnOTS()))
        sums.append([float(update.dense().double().sum()) for update in merged.values()])
    results.put(json.dumps(sums))


def test_two_processes_share_a_cache(tmp_path):
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=merge_with_cache, args=(tmp_path, start, results)) for _ in range(2)]
    for process in processes:
        process.start()
    sums = [json.loads(results.get(timeout=60)) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert all(row == sums[0][0] for process in sums for row in process)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
