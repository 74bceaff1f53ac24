"""The files in which image data sets were first published, where torchvision keeps them.

torchvision's own classes are not used: they want the archives' checksums, unpickle CIFAR, hold whole splits decoded
and have no splits of EuroSAT and SUN397. Nothing here is downloaded or unpickled.
"""

import csv
import gzip
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.sources.image_folder import read_class_folders, read_image_folder
from datamodules.sources.image_source import ImageSource, source_of_arrays, source_of_files
from mergers.errors import SheetbendError

Sources = dict[str, ImageSource]

# Of one array in an IDX file; the largest that is published has 550 million.
_MOST_BYTES = 4 * 2**30


def read_idx(path: Path) -> np.ndarray:
    """Return the bytes of an IDX file: a magic number that ends in the number of dimensions, their sizes, the values.

    Args:
        path: the file, or one compressed by gzip.

    Raises:
        SheetbendError: it is cut off, or is no IDX file of bytes.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(4)
            if len(start) < 4 or start[:3] != b"\0\0\x08":
                raise ValueError("it does not begin like one")
            shape = [int(side) for side in np.frombuffer(file.read(4 * start[3]), ">u4", count=start[3])]
            size = math.prod(shape)
            if size > _MOST_BYTES:
                raise ValueError(f"its header claims {size:,} values")
            content = file.read(size + 1)  # what is compressed may be far larger than it says
        return np.frombuffer(content, np.uint8).reshape(shape)
    except (ValueError, IndexError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SheetbendError(f"{path}: no IDX file of bytes ({error}); fetch it again") from None


def _idx(folder: Path, class_names: Sequence[str], prefix: str = "", test: str = "t10k") -> Sources:
    sources = {}
    for split, part in (("train", "train"), ("test", test)):
        images, labels = (
            _plain_or_gz(folder / f"{prefix}{part}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        )
        sources[split] = source_of_arrays(partial(read_idx, images), [images], read_idx(labels), class_names)
    return sources


def _plain_or_gz(path: Path) -> Path:
    return _there(_first([path, path.with_name(f"{path.name}.gz")]))


def _svhn(folder: Path, class_names: Sequence[str]) -> Sources:
    sources = {}
    for split in ("train", "test"):
        path = folder / f"{split}_32x32.mat"
        labels = _mat(path, "y")["y"].ravel().astype(np.int64) % 10  # the digit zero is class 10 there
        sources[split] = source_of_arrays(partial(_svhn_pictures, path), [path], labels, class_names)
    return sources


def _svhn_pictures(path: Path) -> np.ndarray:
    return np.ascontiguousarray(_mat(path, "X")["X"].transpose(3, 0, 1, 2))


def _cifar(folder: Path, class_names: Sequence[str], files: Mapping[str, Sequence[str]], label_bytes: int) -> Sources:
    sources = {}
    for split, names in files.items():
        paths = [folder / name for name in names]
        # The last label byte of a record is the fine one.
        labels = np.concatenate([_cifar_records(path, label_bytes)[:, label_bytes - 1] for path in paths])
        load = partial(_cifar_pictures, paths, label_bytes)
        sources[split] = source_of_arrays(load, paths, labels, class_names)
    return sources


def _cifar_records(path: Path, label_bytes: int) -> np.ndarray:
    return _records(path, label_bytes + 3 * 32 * 32)


def _cifar_pictures(paths: Sequence[Path], label_bytes: int) -> np.ndarray:
    pixels = [_cifar_records(path, label_bytes)[:, label_bytes:] for path in paths]
    return np.ascontiguousarray(np.concatenate(pixels).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _stl10(folder: Path, class_names: Sequence[str]) -> Sources:
    sources = {}
    for split in ("train", "test"):
        pictures = folder / f"{split}_X.bin"
        labels = _records(folder / f"{split}_y.bin", 1).ravel().astype(np.int64) - 1
        sources[split] = source_of_arrays(partial(_stl10_pictures, pictures), [pictures], labels, class_names)
    return sources


def _stl10_pictures(path: Path) -> np.ndarray:
    # Column by column, as MATLAB writes.
    return np.ascontiguousarray(_records(path, 3 * 96 * 96).reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1))


def _records(path: Path, size: int) -> np.ndarray:
    content = np.fromfile(_there(path), np.uint8)
    if len(content) % size:
        raise SheetbendError(f"{path}: {len(content)} bytes are no multiple of {size}; it is cut off, fetch it again")
    return content.reshape(-1, size)


def _gtsrb(folder: Path, class_names: Sequence[str]) -> Sources:
    training = [folder / name for name in ("GTSRB/Training", "GTSRB/Final_Training/Images", "Final_Training/Images")]
    images = [folder / name for name in ("GTSRB/Final_Test/Images", "Final_Test/Images")]
    found, pictures = _first(training), _first(images)
    answers = _there(_first([folder / "GT-final_test.csv", pictures / "GT-final_test.csv"]))
    with answers.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter=";", skipinitialspace=True))
    test = source_of_files(
        [pictures / row["Filename"] for row in rows], [int(row["ClassId"]) for row in rows], class_names
    )
    return {"train": read_class_folders(found), "test": test}


def _dtd(folder: Path, class_names: Sequence[str]) -> Sources:
    sources = {}
    for split in ("train", "val", "test"):
        names = _lines(folder / "labels" / f"{split}1.txt")
        sources[split] = _by_class([(name.split("/")[0], folder / "images" / name) for name in names])
    return sources


def _sun397(folder: Path, class_names: Sequence[str]) -> Sources:
    sources = {}
    for split, file in (("train", "Training_01.txt"), ("test", "Testing_01.txt")):
        found = _first([folder / file, folder / "Partitions" / file, folder.parent / file])
        if not found.is_file():
            raise SheetbendError(
                f"{folder}: {file} is missing; the first partition of SUN397 (Partitions.zip of its home page) says "
                "which pictures are for training and which for testing"
            )
        names = [name.lstrip("/") for name in _lines(found)]
        sources[split] = _by_class([(name.rpartition("/")[0], folder / name) for name in names])
    return sources


def _stanford_cars(folder: Path, class_names: Sequence[str]) -> Sources:
    names = [str(name) for name in _mat(folder / "devkit" / "cars_meta.mat")["class_names"]]
    sources = {}
    for split, annotations in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = np.atleast_1d(_mat(folder / annotations)["annotations"])
        paths = [folder / f"cars_{split}" / str(row["fname"]) for row in rows]
        sources[split] = source_of_files(paths, [int(row["class"]) - 1 for row in rows], names)
    return sources


def _flowers102(folder: Path, class_names: Sequence[str]) -> Sources:
    numbers, labels = _mat(folder / "setid.mat"), _mat(folder / "imagelabels.mat")["labels"]
    sources = {}
    for split, name in (("train", "trnid"), ("val", "valid"), ("test", "tstid")):
        chosen = np.atleast_1d(numbers[name]).astype(int)
        paths = [folder / "jpg" / f"image_{number:05d}.jpg" for number in chosen]
        sources[split] = source_of_files(paths, labels[chosen - 1].astype(np.int64) - 1, class_names)
    return sources


def _oxford_iiit_pet(folder: Path, class_names: Sequence[str]) -> Sources:
    sources = {}
    for split, file in (("train", "trainval.txt"), ("test", "test.txt")):
        names = [line.split()[0] for line in _lines(folder / "annotations" / file) if not line.startswith("#")]
        sources[split] = _by_class([(name.rpartition("_")[0], folder / "images" / f"{name}.jpg") for name in names])
    return sources


def _food101(folder: Path, class_names: Sequence[str]) -> Sources:
    sources = {}
    for split in ("train", "test"):
        lists = json.loads(_there(folder / "meta" / f"{split}.json").read_text("utf-8"))
        pairs = [(name, folder / "images" / f"{file}.jpg") for name, files in lists.items() for file in files]
        sources[split] = _by_class(pairs)
    return sources


def _pcam(folder: Path, class_names: Sequence[str]) -> Sources:
    try:
        import h5py
    except ImportError:
        raise SheetbendError(
            f"{folder}: h5py, which reads its files, is not installed; `pip install h5py` brings it, or give the hub's "
            "parquet files"
        ) from None
    sources = {}
    for split, part in (("train", "train"), ("val", "valid"), ("test", "test")):
        x, y = (_there(folder / f"camelyonpatch_level_2_split_{part}_{kind}.h5") for kind in "xy")
        with h5py.File(y) as file:
            labels = file["y"][:].ravel()
        # Pictures are read one by one: the training split has 7 GB.
        sources[split] = source_of_arrays(partial(_pcam_pictures, x), [x], labels, class_names)
    return sources


def _pcam_pictures(path: Path) -> Any:
    import h5py

    return h5py.File(path)["x"]


def _fer2013(folder: Path, class_names: Sequence[str]) -> Sources:
    # Files without the labels of the test set are of no use here.
    path = _there(_first([folder / "fer2013.csv", folder / "icml_face_data.csv"]))
    rows = _fer2013_rows(path)
    sources = {}
    # Both of its test sets, as the published code has it.
    for split, usages in (("train", ("Training",)), ("test", ("PublicTest", "PrivateTest"))):
        labels = [int(row["emotion"]) for row in rows if row["Usage"] in usages]
        load = partial(_fer2013_pictures, path, usages)
        sources[split] = source_of_arrays(load, [path], np.array(labels, np.int64), class_names, split)
    return sources


def _fer2013_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, skipinitialspace=True))


def _fer2013_pictures(path: Path, usages: Sequence[str]) -> np.ndarray:
    pixels = [row["pixels"].split() for row in _fer2013_rows(path) if row["Usage"] in usages]
    return np.array(pixels, dtype=np.uint8).reshape(-1, 48, 48)


def _listed(folder: Path, class_names: Sequence[str], pictures: str, lists: str) -> Sources:
    """Read a folder a class, split by lists of file names where they are there."""
    everything = read_class_folders(folder / pictures)
    found = {split: folder / f"{lists}-{split}.txt" for split in ("train", "val", "test")}
    if not found["train"].is_file():
        return {"all": everything}
    by_stem = {
        Path(everything.where(row)).stem: (everything.class_names[label], Path(everything.where(row)))
        for row, label in enumerate(everything.labels)
    }
    sources = {}
    for split, path in found.items():
        if path.is_file():
            stems = [Path(name).stem for name in _lines(path)]
            missing = [stem for stem in stems if stem not in by_stem]
            if missing:
                raise SheetbendError(f"{path}: picture {missing[0]} is not in {folder / pictures}; complete the copy")
            sources[split] = _by_class([by_stem[stem] for stem in stems])
    return sources


def _folders(folder: Path, class_names: Sequence[str]) -> Sources:
    return read_image_folder(folder)


def _by_class(pairs: Sequence[tuple[str, Path]]) -> ImageSource:
    """Return the source of (class name, path) pairs, in their order."""
    names = sorted({name for name, _ in pairs})
    position = {name: number for number, name in enumerate(names)}
    return source_of_files([path for _, path in pairs], [position[name] for name, _ in pairs], names)


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in _there(path).read_text("utf-8").splitlines() if line.strip()]


def _first(paths: Sequence[Path]) -> Path:
    """Return the first of ``paths`` that is there, else the first."""
    return next((path for path in paths if path.exists()), paths[0])


def _there(path: Path) -> Path:
    if not path.is_file():
        raise SheetbendError(f"{path}: there is no such file; complete the copy, or give the hub's parquet files")
    return path


def _mat(path: Path, *names: str) -> dict[str, Any]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise SheetbendError(
            f"{path}: scipy, which reads it, is not installed; `pip install scipy` brings it, or give the hub's "
            "parquet files"
        ) from None
    try:
        return loadmat(_there(path), variable_names=names or None, squeeze_me=True)
    except SheetbendError:
        raise
    except Exception as error:  # whatever its reader meets in a damaged file
        raise SheetbendError(f"{path}: no MATLAB file that can be read ({error}); fetch it again") from None


@dataclass(frozen=True)
class Layout:
    """How a data set was first published.

    Attributes:
        folder: where torchvision keeps it, below its root.
        markers: patterns of files or folders, one of which shows that it is there.
        read: returns its splits, of a folder and the task's class names in the order of the numbers in the files;
            ``all`` where it has no splits.
        pickled: folder of a form that is refused, since unpickling runs code.
        shares: of the splits that are drawn where the files say nothing of splits.
    """

    folder: str
    markers: tuple[str, ...]
    read: Callable[[Path, Sequence[str]], Sources]
    pickled: str | None = None
    shares: Mapping[str, float] = field(default_factory=lambda: {"train": 0.8, "val": 0.1, "test": 0.1})


_CIFAR10 = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
_CIFAR100 = {"train": ["train.bin"], "test": ["test.bin"]}

LAYOUTS: dict[str, Layout] = {
    "mnist": Layout("MNIST/raw", ("train-images-idx3-ubyte*",), _idx),
    "fashion_mnist": Layout("FashionMNIST/raw", ("train-images-idx3-ubyte*",), _idx),
    "kmnist": Layout("KMNIST/raw", ("train-images-idx3-ubyte*",), _idx),
    "emnist": Layout("EMNIST/raw", ("emnist-digits-train-*",), partial(_idx, prefix="emnist-digits-", test="test")),
    "svhn": Layout("", ("train_32x32.mat",), _svhn),
    "cifar10": Layout(
        "cifar-10-batches-bin",
        ("data_batch_1.bin",),
        partial(_cifar, files=_CIFAR10, label_bytes=1),
        pickled="cifar-10-batches-py",
    ),
    "cifar100": Layout(
        "cifar-100-binary",
        ("train.bin",),
        partial(_cifar, files=_CIFAR100, label_bytes=2),
        pickled="cifar-100-python",
    ),
    "stl10": Layout("stl10_binary", ("train_X.bin",), _stl10),
    "gtsrb": Layout("gtsrb", ("GT-final_test.csv", "GTSRB/Training", "Final_Test/Images/GT-final_test.csv"), _gtsrb),
    "eurosat": Layout("eurosat", ("2750",), partial(_listed, pictures="2750", lists="eurosat")),
    "dtd": Layout("dtd/dtd", ("labels/train1.txt",), _dtd),
    "sun397": Layout("SUN397", ("ClassName.txt", "a/abbey"), _sun397),
    "stanford_cars": Layout("stanford_cars", ("devkit/cars_meta.mat",), _stanford_cars),
    "flowers102": Layout("flowers-102", ("setid.mat",), _flowers102),
    "oxford_iiit_pet": Layout("oxford-iiit-pet", ("annotations/trainval.txt",), _oxford_iiit_pet),
    "pcam": Layout("pcam", ("camelyonpatch_level_2_split_train_y.h5",), _pcam),
    "fer2013": Layout("fer2013", ("fer2013.csv", "icml_face_data.csv"), _fer2013),
    "food101": Layout("food-101", ("meta/train.json",), _food101),
    "rendered_sst2": Layout("rendered-sst2", ("train/negative",), _folders),
    "resisc45": Layout(
        "resisc45",
        ("NWPU-RESISC45",),
        partial(_listed, pictures="NWPU-RESISC45", lists="resisc45"),
        shares={"train": 0.6, "val": 0.2, "test": 0.2},
    ),
}


def find_layout(name: str, root: Path) -> Path | None:
    """Return the folder that has the files of layout ``name``.

    Args:
        name: of the layout, and of its folder below ``root``.
        root: a folder with one folder a data set, or a root of torchvision.

    Raises:
        SheetbendError: only a pickled form is there.
    """
    layout = LAYOUTS[name]
    for place in (root / name / layout.folder, root / name, root / layout.folder):
        if any(next(iter(place.glob(marker)), None) is not None for marker in layout.markers if place.is_dir()):
            return place
    for place in (root / name, root) if layout.pickled else ():
        if (place / layout.pickled).is_dir():
            raise SheetbendError(
                f"{place / layout.pickled}: these files are pickled, and reading them could run code; take the binary "
                f"version ({layout.folder}) or the hub's parquet files"
            )
    return None
