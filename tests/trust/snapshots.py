"""What a command has left in a folder: whether each file is whole, and whether it is what another run left."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.util import tensor_util

# What two runs of one command may differ in, and nothing else: seconds, and memory as measured or expected.
TIMES = ("seconds", "peak_bytes", "expected_bytes", "fit_seconds")
SERIES_TIMES = ("results",)  # of series.json: the hash of a results.json, which has times
EVENT_FILES = "training_events"  # of a checkpoint: names of event files, which begin with a time, and their sizes
# The same in words, as reports have them: "fit 3 s", "adaptation 1 min 02 s", "peak memory 617 MB".
TIMES_IN_WORDS = re.compile(r"\b(?:fit|adaptation|test) (?:\d+ min )?[\d.]+ s\b|peak memory [\d.]+ [MG]B")


def files_in(folder: Path) -> dict[str, Path]:
    """Return all files below ``folder`` by their relative names, links and files of hidden folders with them."""
    found = (path for path in sorted(folder.rglob("*")) if not path.is_dir() or path.is_symlink())
    return {path.relative_to(folder).as_posix(): path for path in found}


def temporary(name: str) -> bool:
    """Return whether a relative name is none that a reader would take for a result.

    With dummy files huggingface_hub looks whether a folder can hold links.
    """
    starts, ends = (".", "dummy_file_"), (".incomplete", ".lock", ".tmp")
    return any(part.startswith(starts) or part.endswith(ends) for part in Path(name).parts)


def half_written(folder: Path) -> list[str]:
    """Return the files with a final name that cannot be read whole, and why.

    Files that are only added to (TensorBoard's, and optuna's journal) have a tail that is passed over where it is torn.
    """
    faults = []
    for name, path in files_in(folder).items():
        if temporary(name):
            continue
        try:
            _read(path)
        except Exception as error:
            faults.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return faults


def _read(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise ValueError(f"it points to {path.readlink()}, which is not there")
    reader = READERS.get(path.suffix)
    if reader is not None:
        reader(path)
    elif not path.stat().st_size and not ("tfevents" in path.name or path.suffix == ".journal"):
        raise ValueError("it is empty")


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _yaml(path: Path) -> Any:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("it is no mapping")
    return content


def _safetensors(path: Path) -> Any:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping


def _picture(path: Path) -> Any:
    with Image.open(path) as picture:
        picture.load()
        return picture.size


def _table(path: Path) -> Any:
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise ValueError("its rows differ in length, or it has none")
    return rows


def _checkpoint(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


READERS: dict[str, Callable[[Path], Any]] = {
    ".json": _json,
    ".yaml": _yaml,
    ".safetensors": _safetensors,
    ".png": _picture,
    ".csv": _table,
    ".ckpt": _checkpoint,
    ".npy": np.load,
}


def contents(folder: Path) -> dict[str, Any]:
    """Return what every file below ``folder`` holds, by relative name, as far as two runs must agree.

    A file stands for its bytes. Times and memory are left out of files that have them: of results and candidates by
    their keys, of reports by `TIMES_IN_WORDS`. Of a checkpoint it is what it loads to, and of all event files in one
    folder what TensorBoard reads there, each point once.
    """
    found: dict[str, Any] = {}
    for name, path in files_in(folder).items():
        if "tfevents" in name:
            place = f"{name.rpartition('/')[0]}/events"
            if place not in found:
                found[place] = events(path.parent)
        else:
            found[name] = _content(path)
    return found


def _content(path: Path) -> Any:
    if path.is_symlink():
        return f"-> {path.readlink()}"
    if path.name in ("results.json", "candidates.json", "series.json"):
        return _without(_json(path), SERIES_TIMES if path.name == "series.json" else TIMES)
    if path.name == "candidates.csv":
        header, *rows = _table(path)
        return [[value for key, value in zip(header, row, strict=True) if key not in TIMES] for row in [header, *rows]]
    if path.suffix == ".ckpt":
        return _plain(_without(_checkpoint(path), (*TIMES, EVENT_FILES)))
    content = path.read_bytes()
    if path.suffix in (".md", ".html"):
        return TIMES_IN_WORDS.sub("(time)", content.decode())
    return hashlib.sha256(content).hexdigest()


def _without(value: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner, keys) for key, inner in value.items() if key not in keys}
    return [_without(inner, keys) for inner in value] if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    """Return a value that `==` compares, of one that holds tensors."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.tolist()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def events(folder: Path) -> list[tuple[Any, ...]]:
    """Return (tag, step, content) of all that TensorBoard shows of one folder, sorted; a point twice stands twice.

    A file may say that it begins again at a step: TensorBoard then forgets what older files have from there on.
    """
    points: list[tuple[Any, ...]] = []
    for path in sorted(folder.glob("*tfevents*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            if event.HasField("session_log") and event.session_log.status == event.session_log.START:
                points = [point for point in points if point[1] < event.step]
            for value in event.summary.value:
                points.append((value.tag, event.step, _shown(value)))
    return sorted(points, key=str)


def _shown(value: Any) -> Any:
    if value.HasField("simple_value"):
        return value.simple_value
    if value.HasField("image"):
        return hashlib.sha256(value.image.encoded_image_string).hexdigest()
    if value.HasField("tensor"):
        text = tensor_util.make_ndarray(value.tensor)
        return (
            TIMES_IN_WORDS.sub("(time)", str([one.decode() for one in text.flat]))
            if text.dtype == object
            else text.tolist()
        )
    return _hyperparameters(value) if value.metadata.plugin_data.plugin_name == "hparams" else str(value)


def _hyperparameters(value: Any) -> str:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
    for part in (data.session_start_info, data.session_end_info):
        part.ClearField("start_time_secs") if part is data.session_start_info else part.ClearField("end_time_secs")
    data.experiment.ClearField("time_created_secs")
    return str(data)


def differences(got: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return what differs between two `contents`, one line a file."""
    lines = [f"{name} is missing" for name in expected if name not in got]
    lines += [f"{name} is left over" for name in got if name not in expected]
    for name in expected:
        if name in got and got[name] != expected[name]:
            lines.append(f"{name} differs: {_first_difference(got[name], expected[name])}")
    return lines


def _first_difference(got: Any, expected: Any, place: str = "") -> str:
    if isinstance(got, dict) and isinstance(expected, dict):
        for key in [*got, *expected]:
            if got.get(key) != expected.get(key):
                return _first_difference(got.get(key), expected.get(key), f"{place}.{key}")
    if isinstance(got, list) and isinstance(expected, list) and len(got) == len(expected):
        index = next(index for index, pair in enumerate(zip(got, expected, strict=True)) if pair[0] != pair[1])
        return _first_difference(got[index], expected[index], f"{place}[{index}]")
    if isinstance(got, list) and isinstance(expected, list):
        extra, lacking = [one for one in got if one not in expected], [one for one in expected if one not in got]
        return f"{place}: {len(got)} for {len(expected)}; more: {str(extra)[:300]}; less: {str(lacking)[:300]}"
    return f"{place}: {str(got)[:200]} for {str(expected)[:200]}"
