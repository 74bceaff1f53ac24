import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.decoding import DecodedImages, key_of
from datamodules.image_cache import ImageCache, MappedImages
from datamodules.images import ImageTransform, open_image
from datamodules.sources.image_source import source_of_arrays, source_of_files
from mergers import SheetbendError
from tests.datamodules.pictures_on_disk import picture, write

TRANSFORM = ImageTransform(6)
ENTRY = 3 * 6 * 6  # bytes a picture
HEADER = 128


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def paths(tmp_path):
    return [write(tmp_path / "pictures" / f"{seed}.png", seed) for seed in range(20)]


def source_of(paths):
    return source_of_files(paths, [0] * len(paths), ["thing"])


def cache(folder, entries=10, size=20):
    return ImageCache(entries * (size * ENTRY + HEADER), folder, quiet=True)


def test_pictures_are_those_that_decoding_each_time_gives(folder, paths):
    source = source_of(paths)
    plain = cache(folder, 0).open(source, TRANSFORM, "x")
    cold = cache(folder).open(source, TRANSFORM, "x")
    warm = cache(folder).open(source, TRANSFORM, "x")
    assert [type(one.prepare()) for one in (plain, cold, warm)] == [DecodedImages, MappedImages, MappedImages]
    expected = np.stack([TRANSFORM(open_image(path.read_bytes())) for path in paths])
    for images in (plain, cold, warm):
        assert (images.take(range(20)).numpy() == expected).all()
        assert (images.take(torch.tensor([7, 3, 7])).numpy() == expected[[7, 3, 7]]).all()
        assert [key.tobytes() for key in images.keys] == [key_of(path.read_bytes()) for path in paths]
    assert len(cache(folder).entries()) == 1


def test_a_warm_cache_decodes_nothing(folder, paths, monkeypatch):
    cache(folder).open(source_of(paths), TRANSFORM, "x").prepare()
    monkeypatch.setattr("datamodules.decoding.open_image", None)
    monkeypatch.setattr("pathlib.Path.read_bytes", None)
    assert cache(folder).open(source_of(paths), TRANSFORM, "x").take([5]).shape == (1, 3, 6, 6)


def test_arrays_are_read_when_they_are_needed(folder, tmp_path):
    file = tmp_path / "arrays"
    file.write_bytes(b"content")
    calls = []

    def load():
        calls.append(1)
        return np.stack([picture(seed, channels=1) for seed in range(20)])

    def source():
        return source_of_arrays(load, [file], np.zeros(20), ["thing"])

    first = cache(folder).open(source(), TRANSFORM, "x")
    assert calls == [1]  # for the keys; what was read is let go
    first.prepare()
    assert calls == [1, 1]
    assert (cache(folder).open(source(), TRANSFORM, "x").take([4]) == first.take([4])).all()
    assert calls == [1, 1]


def test_another_content_transform_or_pillow_is_another_entry(folder, paths, monkeypatch):
    used = cache(folder)
    first = used.open(source_of(paths), TRANSFORM, "x")
    other = used.open(source_of(paths), ImageTransform(6, fit="squash"), "x")
    assert not (first.take([0]) == other.take([0])).all()
    write(paths[0], 99)
    changed = used.open(source_of(paths), TRANSFORM, "x")
    assert not (first.take([0]) == changed.take([0])).all()
    monkeypatch.setattr("PIL.__version__", "0")
    used.open(source_of(paths), TRANSFORM, "x").prepare()
    assert len(used.entries()) == 4


def test_what_was_not_used_for_longest_goes_first(folder, paths):
    for age, number in ((300, 0), (100, 4), (200, 8)):
        cache(folder).open(source_of(paths[number : number + 4]), TRANSFORM, "x").prepare()
        newest = max(cache(folder).entries(), key=lambda entry: entry.used)
        os.utime(newest.path, (time.time() - age,) * 2)
    oldest, middle, latest = (entry.path for entry in cache(folder).entries())
    cache(folder).open(source_of(paths[:4]), TRANSFORM, "x").prepare()  # the oldest is used again
    room = ImageCache(sum(entry.size for entry in cache(folder).entries()), folder, quiet=True)
    room.open(source_of(paths[12:16]), TRANSFORM, "x").prepare()
    there = {entry.path for entry in room.entries()}
    assert middle not in there and {oldest, latest} < there and len(there) == 3


def test_an_entry_in_use_stays_and_the_new_one_is_decoded_each_time(folder, paths):
    limit = 5 * ENTRY + HEADER
    held = ImageCache(limit, folder, quiet=True).open(source_of(paths[:5]), TRANSFORM, "x")
    other = ImageCache(limit, folder, quiet=True).open(source_of(paths[5:10]), TRANSFORM, "x")
    assert isinstance(held.prepare(), MappedImages) and isinstance(other.prepare(), DecodedImages)
    assert ImageCache(limit, folder).clear() == []
    before = held.take([0])
    del held
    again = ImageCache(limit, folder, quiet=True).open(source_of(paths[5:10]), TRANSFORM, "x")
    assert isinstance(again.prepare(), MappedImages)
    assert len(ImageCache(limit, folder).entries()) == 1
    assert before.shape == (1, 3, 6, 6)


def test_what_is_larger_than_the_cache_leaves_the_others_alone(folder, paths):
    small = ImageCache(5 * ENTRY + HEADER, folder, quiet=True)
    small.open(source_of(paths[:5]), TRANSFORM, "x").prepare()
    assert isinstance(small.open(source_of(paths), TRANSFORM, "x").prepare(), DecodedImages)
    assert len(small.entries()) == 1


def test_a_damaged_entry_is_made_again(folder, paths):
    cache(folder).open(source_of(paths), TRANSFORM, "x").prepare()
    (entry,) = cache(folder).entries()
    with (entry.path / "pixels.npy").open("r+b") as file:
        file.truncate(300)
    again = cache(folder).open(source_of(paths), TRANSFORM, "x")
    assert (again.take([19]).numpy() == TRANSFORM(open_image(paths[19].read_bytes()))).all()


FILL = """
import sys, time
from pathlib import Path
from datamodules.image_cache import ImageCache
from datamodules.images import ImageTransform, open_image
from datamodules.sources.image_source import source_of_files
import datamodules.decoding as module

def slow(raw):
    Path(sys.argv[2]).touch()
    time.sleep(60)

module.open_image = slow
paths = sorted(Path(sys.argv[1]).iterdir(), key=lambda path: int(path.stem))
source = source_of_files(paths, [0] * 20, ["thing"])
ImageCache(10**6, Path(sys.argv[3]), quiet=True).open(source, ImageTransform(6), "x").prepare()
"""


def test_what_a_killed_process_left_is_not_used_and_goes(folder, paths, tmp_path):
    script, started = tmp_path / "fill.py", tmp_path / "started"
    script.write_text(textwrap.dedent(FILL))
    process = subprocess.Popen(
        [sys.executable, str(script), str(paths[0].parent), str(started), str(folder)],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    try:
        deadline = time.time() + 60
        while not started.exists() and time.time() < deadline:
            time.sleep(0.05)
        assert sorted(path.name[0] for path in folder.iterdir() if path.is_dir()) == [".", "k"]
        assert ImageCache(10**6, folder).size() == 20 * ENTRY + HEADER  # counted while it is filled
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    images = ImageCache(10**6, folder, quiet=True).open(source_of(paths), TRANSFORM, "x")
    assert (images.take([3]).numpy() == TRANSFORM(open_image(paths[3].read_bytes()))).all()
    assert not [path for path in folder.iterdir() if path.is_dir() and path.name.startswith(".")]


def _open_in_process(folder, paths, results):
    images = ImageCache(10**6, folder, quiet=True).open(source_of(paths), TRANSFORM, "x")
    results.put((type(images.prepare()).__name__, int(images.take(range(20)).sum())))


def test_two_processes_that_want_one_entry_fill_it_once(folder, paths):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_open_in_process, args=(folder, paths, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(found) == 1 and next(iter(found))[0] == "MappedImages"


def test_images_go_to_worker_processes_as_they_are(folder, paths):
    for limit in (0, 10):
        images = cache(folder, limit).open(source_of(paths), TRANSFORM, "x")
        images.prepare()
        assert (pickle.loads(pickle.dumps(images)).take([2, 9]) == images.take([2, 9])).all()


def test_a_folder_that_cannot_be_written_is_said_once_and_passed_over(tmp_path, paths):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.warns(UserWarning, match="pictures are not cached"):
        images = cache(blocked / "images").open(source_of(paths), TRANSFORM, "x")
        assert isinstance(images.prepare(), DecodedImages)


@pytest.mark.parametrize("limit", [0, 10])
@pytest.mark.parametrize("content", [b"no picture", b""])
def test_a_picture_that_cannot_be_decoded_is_named(folder, paths, limit, content):
    paths[7].write_bytes(content)
    with pytest.raises(SheetbendError, match=r"^task dtd, train: .*7.png cannot be decoded as a picture .*replace"):
        cache(folder, limit).open(source_of(paths), TRANSFORM, "task dtd, train")
    assert not cache(folder).entries()


def test_a_picture_that_is_cut_off_is_named(folder, paths):
    paths[7].write_bytes(paths[7].read_bytes()[:-40])
    with pytest.raises(SheetbendError, match=r"7.png cannot be decoded"):
        cache(folder).open(source_of(paths), TRANSFORM, "x").prepare()
    with pytest.raises(SheetbendError, match=r"7.png cannot be decoded"):
        cache(folder, 0).open(source_of(paths), TRANSFORM, "x").take([6, 7])


def test_work_is_shown_unless_it_is_to_be_quiet(folder, paths, capsys):
    ImageCache(10**6, folder).open(source_of(paths), TRANSFORM, "task dtd, train").prepare()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["task dtd, train: reading 20 pictures", "task dtd, train: decoding 20 pictures"]
    ImageCache(10**6, folder).open(source_of(paths), TRANSFORM, "task dtd, train").prepare()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\3\4",
        b"\x80\x04.",
        b"\x93NUMPY\x01\0v\0{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 32), }".ljust(127)
        + b"\n",
        b"\x93NUMPY\x01\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (20, 32), }".ljust(127) + b"\n",
    ],
    ids=["empty", "zip", "pickle", "claims a terabyte", "objects"],
)
def test_files_of_the_cache_that_are_none_are_made_anew(folder, paths, content):
    cache = ImageCache(10**6, folder, quiet=True)
    expected = cache.open(source_of(paths), TRANSFORM, "task")
    pixels, keys = expected.take([0, 1]).clone(), expected.keys
    del expected  # and with it the lock
    for path in [*folder.glob("keys/*.npy"), *folder.glob("*/pixels.npy")]:
        path.write_bytes(content)
    again = ImageCache(10**6, folder, quiet=True).open(source_of(paths), TRANSFORM, "task")
    assert np.array_equal(again.keys, keys) and torch.equal(again.take([0, 1]), pixels)


def test_what_is_no_file_is_no_picture(tmp_path, paths):
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for name in ("endless.png", "folder.png"):
        with pytest.raises(SheetbendError, match=f"{name} is no file"):
            source_of([*paths, tmp_path / name])
