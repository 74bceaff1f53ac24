"""Each original layout, tiny, in its own files; torchvision reads the same where it can."""

import csv
import gzip
import json
import struct

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from datamodules.images import open_image
from datamodules.sources.layouts import LAYOUTS, find_layout, read_idx
from datamodules.vision_tasks import VISION_TASKS
from mergers import SheetbendError
from tests.datamodules.pictures_on_disk import class_folders, picture, write

CLASSES = {name: entry.task.class_names for name, entry in VISION_TASKS.items()}


def stack(seeds, **sizes):
    return np.stack([picture(seed, **sizes) for seed in seeds])


def read(name, root):
    """Return {split: [(class name, uint8 (H, W[, 3])), ...]} of a layout below ``root``."""
    found = find_layout(name, root)
    assert found is not None
    return {
        split: [
            (source.class_names[label], np.asarray(open_image(source.raw(i)))) for i, label in enumerate(source.labels)
        ]
        for split, source in LAYOUTS[name].read(found, CLASSES[name]).items()
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for split, examples in expected.items():
        assert [name for name, _ in found[split]] == [name for name, _ in examples]
        for (_, ours), (_, theirs) in zip(found[split], examples, strict=True):
            assert ours.shape == theirs.shape and (ours == theirs).all()


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "folder", "prefix", "test"),
    [
        ("mnist", "mnist/MNIST/raw", "", "t10k"),
        ("fashion_mnist", "FashionMNIST/raw", "", "t10k"),
        ("kmnist", "kmnist", "", "t10k"),
        ("emnist", "EMNIST/raw", "emnist-digits-", "test"),
    ],
)
def test_idx_files(tmp_path, name, folder, prefix, test, packed):
    expected = {}
    for split, part, seeds in (("train", "train", range(4)), ("test", test, range(4, 7))):
        labels = np.array([9, 0, 3, 1][: len(seeds)], np.uint8)
        pictures = stack(seeds, height=28, width=28, channels=1)
        for kind, array in (("images-idx3", pictures), ("labels-idx1", labels)):
            path = tmp_path / folder / f"{prefix}{part}-{kind}-ubyte{'.gz' if packed else ''}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
        expected[split] = [(CLASSES[name][label], one) for label, one in zip(labels, pictures, strict=True)]
    assert_same(read(name, tmp_path), expected)


def test_idx_files_are_read_as_torchvision_does(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(idx(stack(range(5), height=28, width=28, channels=1)))
    assert (read_idx(path) == datasets.mnist.read_image_file(str(path)).numpy()).all()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", idx(np.zeros((3, 4), np.uint8))[:-1]])
def test_idx_files_that_are_none(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(SheetbendError, match=r"x: no IDX file of bytes .*fetch it again"):
        read_idx(tmp_path / "x")


def test_svhn(tmp_path):
    expected = {}
    for split, seeds in (("train", range(3)), ("test", range(3, 5))):
        labels, pictures = np.array([10, 1, 9][: len(seeds)]), stack(seeds, height=32, width=32)
        savemat(tmp_path / f"{split}_32x32.mat", {"X": pictures.transpose(1, 2, 3, 0), "y": labels[:, None]})
        expected[split] = [(str(label % 10), one) for label, one in zip(labels, pictures, strict=True)]
    assert_same(read("svhn", tmp_path), expected)


@pytest.mark.parametrize(("name", "folder"), [("cifar10", "cifar-10-batches"), ("cifar100", "cifar-100")])
def test_cifar_in_its_binary_version(tmp_path, name, folder):
    ten = name == "cifar10"
    files = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"] if ten else ["train.bin", "test.bin"]
    place = tmp_path / (f"{folder}-bin" if ten else f"{folder}-binary")
    place.mkdir()
    expected = {"train": [], "test": []}
    for number, file in enumerate(files):
        content = b""
        for label in (7, 2):
            pixels = picture(10 * number + label, 32, 32)
            content += (b"" if ten else b"\x01") + bytes([label]) + pixels.transpose(2, 0, 1).tobytes()
            expected["test" if "test" in file else "train"].append((CLASSES[name][label], pixels))
        (place / file).write_bytes(content)
    assert_same(read(name, tmp_path), expected)
    (place / files[-1]).write_bytes(content[:-1])
    with pytest.raises(SheetbendError, match=r"are no multiple of 307[34]; it is cut off"):
        read(name, tmp_path)


@pytest.mark.parametrize(("name", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
@pytest.mark.parametrize("below", ["", "own"])
def test_pickled_cifar_is_refused(tmp_path, name, folder, below):
    (tmp_path / (name if below else "") / folder).mkdir(parents=True)
    with pytest.raises(SheetbendError, match=f"{folder}: these files are pickled.* binary version .* parquet files"):
        find_layout(name, tmp_path)


def test_stl10(tmp_path):
    expected, place = {}, tmp_path / "stl10_binary"
    place.mkdir()
    for split, seeds in (("train", range(2)), ("test", range(2, 4))):
        pictures = stack(seeds, height=96, width=96)
        pictures.transpose(0, 3, 2, 1).tofile(place / f"{split}_X.bin")
        np.array([10, 1], np.uint8).tofile(place / f"{split}_y.bin")
        expected[split] = [(CLASSES["stl10"][label], one) for label, one in zip([9, 0], pictures, strict=True)]
    assert_same(read("stl10", tmp_path), expected)


def by_class(dataset):
    """What a class of torchvision reads, as `read` gives it."""
    return [(dataset.classes[label], np.asarray(image)) for image, label in dataset]


def test_gtsrb(tmp_path):
    base = tmp_path / "gtsrb"
    for number, sign in enumerate(("00000", "00014", "00042")):
        write(base / "GTSRB" / "Training" / sign / "00000_00000.ppm", number)
    rows = [("00000.ppm", 14), ("00001.ppm", 0)]
    for number, (file, _) in enumerate(rows):
        write(base / "GTSRB" / "Final_Test" / "Images" / file, 20 + number)
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    lines += [f"{file};8;10;1;1;7;9;{label}" for file, label in rows]
    (base / "GT-final_test.csv").write_text("\n".join(lines) + "\n")
    found = read("gtsrb", tmp_path)
    assert [name for name, _ in found["train"]] == ["00000", "00014", "00042"]
    assert [name for name, _ in found["test"]] == [CLASSES["gtsrb"][14], CLASSES["gtsrb"][0]]
    for split, examples in found.items():
        theirs = datasets.GTSRB(tmp_path, split)
        assert all((ours == np.asarray(image)).all() for (_, ours), (image, _) in zip(examples, theirs, strict=True))


def test_dtd(tmp_path):
    base = tmp_path / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for number, split in enumerate(("train", "val", "test")):
        names = [f"{name}/{name}_{number}.jpg" for name in ("zigzagged", "banded")]
        for i, name in enumerate(names):
            write(base / "images" / name, 2 * number + i)
        (base / "labels" / f"{split}1.txt").write_text("\n".join(names) + "\n")
    assert_same(
        read("dtd", tmp_path), {split: by_class(datasets.DTD(tmp_path, split)) for split in ("train", "val", "test")}
    )


def test_sun397_by_its_first_partition(tmp_path):
    base = tmp_path / "SUN397"
    names = ["a/abbey/sun_aaa.jpg", "a/apartment_building/outdoor/sun_bbb.jpg", "z/zoo/sun_ccc.jpg"]
    expected = []
    for number, name in enumerate(names):
        path = write(base / name, number)
        expected.append((name.rpartition("/")[0], np.asarray(Image.open(path))))
    (base / "ClassName.txt").write_text("/a/abbey\n")
    with pytest.raises(SheetbendError, match=r"Training_01.txt is missing; the first partition of SUN397"):
        read("sun397", tmp_path)
    (base / "Training_01.txt").write_text("\r\n".join(f"/{name}" for name in names[:2]))
    (base / "Testing_01.txt").write_text(f"/{names[2]}\n")
    assert_same(read("sun397", tmp_path), {"train": expected[:2], "test": expected[2:]})


def test_stanford_cars(tmp_path):
    base = tmp_path / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    cars = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Acura TL Sedan 2012"]
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array(cars, object)})
    kind = [("class", object), ("fname", object)]
    for split, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = [(label, f"{label:05d}.jpg") for label in (2, 1, 3)]
        for label, name in rows:
            write(base / f"cars_{split}" / name, label + len(split))
        savemat(base / file, {"annotations": np.array(rows, kind)})
    expected = {split: by_class(datasets.StanfordCars(tmp_path, split)) for split in ("train", "test")}
    assert_same(read("stanford_cars", tmp_path), expected)


def test_flowers102(tmp_path, monkeypatch):
    base = tmp_path / "flowers-102"
    for number in range(1, 7):
        write(base / "jpg" / f"image_{number:05d}.jpg", number)
    savemat(base / "setid.mat", {"trnid": [[2, 1]], "valid": [[4, 3]], "tstid": [[6, 5]]})
    savemat(base / "imagelabels.mat", {"labels": [[1, 102, 3, 77, 5, 50]]})
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda *_: True)
    expected = {
        split: [
            (CLASSES["flowers102"][label], np.asarray(image)) for image, label in datasets.Flowers102(tmp_path, split)
        ]
        for split in ("train", "val", "test")
    }
    assert_same(read("flowers102", tmp_path), expected)


def test_oxford_iiit_pet(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    names = [("Abyssinian", 1), ("american_bulldog", 2), ("yorkshire_terrier", 3)]
    for number, file in enumerate(("trainval", "test")):
        lines = [f"{name}_{100 + number} {label} 1 1" for name, label in names]
        for label, line in enumerate(lines):
            write(base / "images" / f"{line.split()[0]}.jpg", 10 * number + label)
        (base / "annotations" / f"{file}.txt").write_text("\n".join(lines) + "\n")
    found = read("oxford_iiit_pet", tmp_path)
    expected = {
        split: [(names[label][0], np.asarray(image)) for image, label in datasets.OxfordIIITPet(tmp_path, theirs)]
        for split, theirs in (("train", "trainval"), ("test", "test"))
    }
    assert_same(found, expected)


def test_food101(tmp_path):
    base = tmp_path / "food-101"
    (base / "meta").mkdir(parents=True)
    for number, split in enumerate(("train", "test")):
        lists = {name: [f"{name}/{10 * number + i}" for i in range(2)] for name in ("apple_pie", "waffles")}
        for seed, file in enumerate(file for files in lists.values() for file in files):
            write(base / "images" / f"{file}.jpg", 10 * number + seed)
        (base / "meta" / f"{split}.json").write_text(json.dumps(lists))
    expected = {split: by_class(datasets.Food101(tmp_path, split)) for split in ("train", "test")}
    assert_same(read("food101", tmp_path), expected)


@pytest.mark.parametrize("spelling", ["fer2013.csv", "icml_face_data.csv"])
def test_fer2013(tmp_path, spelling):
    (tmp_path / "fer2013").mkdir()
    usages = ["Training", "PublicTest", "Training", "PrivateTest"]
    pictures = stack(range(4), height=48, width=48, channels=1)
    pixels = [" ".join(map(str, one.ravel())) for one in pictures]
    header = ["emotion", "pixels", "Usage"] if spelling == "fer2013.csv" else ["emotion", " Usage", " pixels"]
    with (tmp_path / "fer2013" / spelling).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for label, (text, usage) in enumerate(zip(pixels, usages, strict=True)):
            writer.writerow([label, text, usage] if spelling == "fer2013.csv" else [label, usage, text])
    examples = [(CLASSES["fer2013"][label], one) for label, one in enumerate(pictures)]
    assert_same(read("fer2013", tmp_path), {"train": examples[::2], "test": examples[1::2]})


def test_rendered_sst2(tmp_path):
    for number, split in enumerate(("train", "valid", "test")):
        class_folders(tmp_path / "rendered-sst2" / split, ("negative", "positive"), 2, 10 * number)
    expected = {
        ours: by_class(datasets.RenderedSST2(tmp_path, theirs))
        for ours, theirs in (("train", "train"), ("val", "val"), ("test", "test"))
    }
    assert_same(read("rendered_sst2", tmp_path), expected)


@pytest.mark.parametrize(
    ("name", "pictures", "classes"),
    [("eurosat", "2750", ("AnnualCrop", "Forest")), ("resisc45", "NWPU-RESISC45", ("airplane", "sea_ice"))],
)
def test_folders_with_and_without_lists_of_splits(tmp_path, name, pictures, classes):
    base = tmp_path / name
    pairs = []
    for seed, one in enumerate(classes):
        for number in (1, 2, 3):
            path = write(base / pictures / one / f"{one}_{number}.jpg", 3 * seed + number)
            pairs.append((one, np.asarray(Image.open(path))))
    assert_same(read(name, tmp_path), {"all": pairs})
    for number, split in enumerate(("train", "val", "test"), 1):
        (base / f"{name}-{split}.txt").write_text("".join(f"{one}_{number}.jpg\n" for one in classes))
    expected = {split: [pairs[i], pairs[3 + i]] for i, split in enumerate(("train", "val", "test"))}
    assert_same(read(name, tmp_path), expected)
    (base / f"{name}-val.txt").write_text("nowhere_1.jpg\n")
    with pytest.raises(SheetbendError, match=r"picture nowhere_1 is not in .*complete the copy"):
        read(name, tmp_path)


def test_pcam_needs_h5py_or_says_so(tmp_path):
    base = tmp_path / "pcam"
    base.mkdir()
    names = {"train": "train", "val": "valid", "test": "test"}
    try:
        import h5py
    except ImportError:
        (base / "camelyonpatch_level_2_split_train_y.h5").touch()
        with pytest.raises(SheetbendError, match="h5py, which reads its files, is not installed; `pip install h5py`"):
            read("pcam", tmp_path)
        return
    expected = {}
    for number, (split, part) in enumerate(names.items()):
        pictures, labels = stack(range(2 * number, 2 * number + 2), height=96, width=96), np.array([1, 0], np.uint8)
        for kind, array in (("x", pictures), ("y", labels.reshape(-1, 1, 1, 1))):
            with h5py.File(base / f"camelyonpatch_level_2_split_{part}_{kind}.h5", "w") as file:
                file[kind] = array
        expected[split] = [(CLASSES["pcam"][label], one) for label, one in zip(labels, pictures, strict=True)]
    assert_same(read("pcam", tmp_path), expected)


def test_a_file_that_is_missing_is_named(tmp_path):
    (tmp_path / "dtd" / "labels").mkdir(parents=True)
    (tmp_path / "dtd" / "labels" / "train1.txt").write_text("banded/banded_1.jpg\n")
    with pytest.raises(SheetbendError, match=r"banded_1.jpg: No such file .*; complete the copy"):
        read("dtd", tmp_path)


def test_every_task_has_a_layout():
    assert set(LAYOUTS) == {entry.layout for entry in VISION_TASKS.values()}


def test_an_idx_file_is_as_large_as_it_says(tmp_path):
    """A header that claims more than any data set, and a gzip of zeros without end behind an honest one."""
    head = b"\0\0\x08\x03"
    small = head + struct.pack(">III", 2, 8, 8) + bytes(128)
    assert read_idx(written(tmp_path, "a.gz", gzip.compress(small))).shape == (2, 8, 8)
    for name, content in (
        ("b", head + struct.pack(">III", 2**32 - 1, 2**32 - 1, 2**32 - 1)),
        ("c.gz", gzip.compress(head + struct.pack(">III", 10**4, 10**4, 10**4))),
        ("d.gz", gzip.compress(small + bytes(10**8))),
        ("e.gz", gzip.compress(small)[:-20]),
        ("f.gz", gzip.compress(small)[:20] + b"\xff" * 40),
        ("g", b""),
    ):
        with pytest.raises(SheetbendError, match="no IDX file of bytes"):
            read_idx(written(tmp_path, name, content))


def written(folder, name, content):
    (folder / name).write_bytes(content)
    return folder / name
