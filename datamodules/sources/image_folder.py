"""Folders of pictures, one folder a class."""

from pathlib import Path

from datamodules.sources.image_source import SUFFIXES, ImageSource, source_of_files
from mergers.errors import SheetbendError

# What people call the splits on disk.
SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}


def class_folders(folder: Path) -> list[Path]:
    """Return the subfolders of ``folder`` that hold pictures, at any depth, in the order of their names.

    Raises:
        SheetbendError: one is a link to what it is part of.
    """
    if not folder.is_dir():
        return []
    here = folder.resolve()
    for path in folder.iterdir():
        if path.is_symlink() and path.resolve() in (here, *here.parents):
            raise SheetbendError(f"{path} is a link to a folder that it is part of; take it away")
    return sorted(path for path in folder.iterdir() if path.is_dir() and _pictures(path, first=True))


def has_class_folders(folder: Path) -> bool:
    """Return whether ``folder`` is one that `read_image_folder` can read, by its own or its splits' class folders."""
    return bool(_split_folders(folder) or class_folders(folder))


def _split_folders(folder: Path) -> dict[str, Path]:
    return {
        split: path for split, names in SPLIT_FOLDERS.items() for name in names if class_folders(path := folder / name)
    }


def read_image_folder(folder: Path) -> dict[str, ImageSource]:
    """Read ``folder``/<split>/<class>/*, or ``folder``/<class>/* as the one split ``all``.

    The names of splits are train, val (valid, validation) and test. Files that are no pictures by their suffix, and
    hidden ones, are passed over.

    Raises:
        SheetbendError: there are no class folders.
    """
    parts = _split_folders(folder)
    if "train" in parts or "test" in parts:
        return {split: read_class_folders(path) for split, path in parts.items()}
    return {"all": read_class_folders(folder)}


def read_class_folders(folder: Path) -> ImageSource:
    """Read ``folder``/<class>/*; classes and files in the order of their names.

    Raises:
        SheetbendError: there are no class folders, or one is empty.
    """
    classes = class_folders(folder)
    if not classes:
        raise SheetbendError(
            f"{folder}: no folder of pictures a class is there ({', '.join(SUFFIXES)}); put <class>/*, or "
            "{train,val,test}/<class>/*, below it"
        )
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path not in classes and not path.name.startswith((".", "__")):
            raise SheetbendError(
                f"{path}: this folder of a class holds no pictures ({', '.join(SUFFIXES)}); put some there, or take "
                "the folder away"
            )
    paths, labels = [], []
    for label, path in enumerate(classes):
        found = _pictures(path)
        paths += found
        labels += [label] * len(found)
    return source_of_files(paths, labels, [path.name for path in classes])


def _pictures(folder: Path, first: bool = False) -> list[Path]:
    """Return the pictures below ``folder`` in the order of their paths; or one of them, if only whether there are."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    if first:
        one = next(found, None)
        return [] if one is None else [one]
    return sorted(found)
