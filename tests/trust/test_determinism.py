"""The same bytes whatever runs beside: threads, order, cache, streaming, hash seeds, workers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from callbacks import AdapterCheckpoint, MergeCallback
from mergers import PRESETS, save_adapter, save_merged
from mergers.cache import AlignmentCache
from tests.lightning_modules.training import fit
from tests.mergers.builders import random_adapters

ROOT = Path(__file__).resolve().parents[2]
# Large enough for BLAS to split products among threads; a tall, a wide and a square matrix, and equal shapes.
SHAPES = {"layers.0.q": (320, 300), "layers.1.q": (320, 300), "layers.0.up": (400, 100), "layers.0.down": (100, 400)}
FILES = ("adapter_model.safetensors", "adapter_config.json", "README.md", "sheetbend_merge.json")


@pytest.fixture(scope="module")
def adapters():
    return random_adapters(3, SHAPES, ranks=20)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", PRESETS)
def test_a_merge_has_the_same_bytes_however_it_is_made(name, adapters, threads, tmp_path):
    merger = PRESETS[name]
    rank = None if merger.low_rank else 8
    cache = AlignmentCache(tmp_path / "cache")
    cold, warm = ({"encode": cache.encoder(merger.space)} if merger.space.costly else {} for _ in range(2))

    def made(number, order, **options):
        threads(number)
        save_merged(merger, [adapters[index] for index in order], tmp_path / "merged", rank=rank, **options)
        return {file: (tmp_path / "merged" / file).read_bytes() for file in FILES}

    expected = made(1, [0, 1, 2])
    for number, options in ((2, {}), (4, cold), (1, warm), (4, warm)):
        assert made(number, [0, 1, 2], **options) == expected, (number, options)
    for number, options in ((2, {}), (4, warm)):
        found = made(number, [2, 0, 1], **options)
        assert [found[file] for file in FILES[:2]] == [expected[file] for file in FILES[:2]], (number, options)
    threads(2)
    merger.merge(adapters).save(tmp_path / "merged", rank=rank)  # all modules held, then written
    assert {file: (tmp_path / "merged" / file).read_bytes() for file in FILES} == expected


@pytest.mark.parametrize("preset", ["knots-dare-ties", pytest.param("della", marks=pytest.mark.slow)])
def test_processes_of_their_own_make_the_same_bytes(preset, adapters, tmp_path):
    """Other hash seeds, threads from the environment, and the cache as the process before has left it."""
    names = []
    for adapter in adapters:
        save_adapter(adapter, tmp_path / adapter.name)
        names.append(f"{adapter.name}={tmp_path / adapter.name}")
    found = set()
    for run, threads in enumerate(("1", "2", "4")):
        order = names[run:] + names[:run]
        rank = [] if PRESETS[preset].low_rank else ["--rank", "8"]
        out = ["--output", "merged", "--overwrite", "--quiet"]
        words = ["merge", "--adapters", *order, "--preset", preset, *rank, *out]
        settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads, "PYTHONHASHSEED": str(run)}
        subprocess.run([sys.executable, "-m", "launch", *words], env=os.environ | settings, cwd=tmp_path, check=True)
        found.add(tuple((tmp_path / "merged" / file).read_bytes() for file in FILES[:2]))
    assert len(found) == 1


@pytest.mark.filterwarnings("ignore:.*worker processes in total")  # more than this machine has cores
def test_fit_and_test_do_not_depend_on_workers(tiny_clip, tmp_path):
    found = []
    for workers in (0, 1, 3):
        folder = tmp_path / str(workers)
        merges = MergeCallback({"knots-ties": "knots-ties", "dare": "dare"})
        callbacks, data = [merges, AdapterCheckpoint()], {"num_workers": workers}
        model = fit(tiny_clip, folder, ["hue", "tint", "shade"], callbacks, data, max_epochs=2)
        validated = model.scores()
        model.trainer.test(model, model.trainer.datamodule, verbose=False)
        files = sorted(path for path in (folder / "adapters").rglob("*") if path.is_file())
        found.append((validated, model.scores(), [(path.name, path.read_bytes()) for path in files]))
    assert found[0] == found[1] == found[2]
    assert len(found[0][2]) == 3 * 4 and {score.variant for score in found[0][1]} >= {"finetuned", "dare"}
