import dataclasses
import gzip
import itertools
import struct

import numpy as np
import pytest
import torch

from datamodules import QuickstartDataModule, pictures, quickstart
from mergers import SheetbendError

ALWAYS = ["digits", "mnist", "textures", "photographs", "scenes", "faces"]


@pytest.fixture(scope="module")
def loaded():
    datamodule = QuickstartDataModule(ALWAYS)
    datamodule.setup()
    return datamodule


def test_pictures_are_rgb_bytes_of_the_base_models_size(loaded):
    for task in ALWAYS:
        for name in ("train", "val", "test"):
            split = loaded.split(task, name)
            assert split.inputs.dtype == torch.uint8 and split.inputs.shape[1:] == (3, 32, 32)
            # A few of the photographed backgrounds are plain black; nothing else is blank.
            blank = split.inputs.float().flatten(1).std(1) == 0
            assert not blank.any() or (
                task == "faces" and (split.labels[blank] == 1).all() and blank.float().mean() < 0.1
            )
    for task in loaded.tasks:
        for name in ("train", "val", "test"):
            assert set(loaded.split(task.name, name).labels.tolist()) == set(range(len(task.class_names)))


def test_no_picture_is_in_two_splits(loaded):
    for task in ALWAYS:
        keys = {name: set(loaded.split(task, name).example_keys()) for name in ("train", "val", "test")}
        assert not keys["train"] & keys["val"] and not keys["train"] & keys["test"] and not keys["val"] & keys["test"]


def test_crops_of_different_splits_share_no_pixel():
    """Every pixel carries its own column number; no column comes up in two splits."""
    columns = np.tile(np.arange(200, dtype=np.uint8), (40, 1))
    splits = pictures.band_crops(
        [columns, columns], [16, 32], {"train": 30, "val": 10, "test": 10}, quickstart.SHARES, "proof"
    )
    ranges = {name: (int(split.inputs.min()), int(split.inputs.max())) for name, split in splits.items()}
    assert ranges["train"][1] < ranges["val"][0] and ranges["val"][1] < ranges["test"][0]


def test_the_bands_of_the_real_photographs_are_apart_and_hold_a_crop():
    for photograph in (*quickstart.PHOTOGRAPHS, *quickstart.SCENES):
        edges = list(pictures.bands(photograph.read().shape[1], quickstart.SHARES, gap=8).values())
        assert all(right[0] - left[1] == 8 for left, right in itertools.pairwise(edges))
        assert all(stop - start >= photograph.side for start, stop in edges)


def test_digits_and_mnist_share_their_labels(loaded):
    sets = {task.name: task.label_set for task in loaded.tasks}
    assert sets["digits"] == sets["mnist"] == "ten digits"
    assert sets["textures"] is sets["photographs"] is sets["faces"] is None


def test_splits_depend_on_nothing_but_the_task(loaded):
    alone = QuickstartDataModule(["faces"], seed=9)
    alone.setup()
    assert alone.fingerprints()["faces"] == loaded.fingerprints()["faces"]


def test_a_picture_knows_its_label(loaded):
    """The nearest training picture has the same label far more often than chance: labels are not shuffled."""
    for task, least in [
        ("digits", 0.9),
        ("mnist", 0.85),
        ("textures", 0.4),
        ("photographs", 0.5),
        ("scenes", 0.4),
        ("faces", 0.6),
    ]:
        train, test = loaded.split(task, "train"), loaded.split(task, "test")
        distances = torch.cdist(test.inputs.flatten(1).float(), train.inputs.flatten(1).float())
        hits = (train.labels[distances.argmin(1)] == test.labels).float().mean()
        assert hits > least, (task, hits)


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr(quickstart.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SheetbendError, match="task 'digits': sklearn is not installed; `pip install scikit-learn`"):
        QuickstartDataModule(["digits"]).setup()


def test_a_missing_debian_package_is_named_with_its_command(monkeypatch, tmp_path):
    moved = [
        dataclasses.replace(e, sources=(tmp_path / "none",)) for e in quickstart.QUICKSTART if e.task.name != "digits"
    ]
    monkeypatch.setattr(quickstart, "QUICKSTART", moved)
    with pytest.raises(SheetbendError, match="apt-get install dataset-fashion-mnist"):
        QuickstartDataModule(["fashion_mnist"]).setup()


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(struct.pack(">I", size) for size in array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_fashion_mnist_is_read_from_idx_files(monkeypatch, tmp_path):
    generator = np.random.default_rng(0)
    train = generator.integers(0, 256, (7000, 28, 28), dtype=np.uint8)
    test = generator.integers(0, 256, (1600, 28, 28), dtype=np.uint8)
    train[3], train[4] = test[0], train[5]  # the published files repeat a few pictures
    labels, test_labels = (generator.integers(0, 10, size, dtype=np.uint8) for size in (7000, 1600))
    monkeypatch.setattr(quickstart, "FASHION_MNIST", tmp_path)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", train)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", labels)
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", test)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", test_labels)
    splits = quickstart._fashion_mnist()
    assert {name: len(split) for name, split in splits.items()} == {"train": 6000, "val": 500, "test": 1500}
    keys = [key for split in splits.values() for key in split.example_keys()]
    assert len(set(keys)) == len(keys)
    assert (splits["test"].inputs[0, 0, 2:30, 2:30].numpy() == test[0]).all()
    assert splits["test"].labels.tolist() == test_labels[:1500].tolist()
