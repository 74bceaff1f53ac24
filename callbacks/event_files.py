"""TensorBoard: one folder a variant, the same tags in all of them, so that they share charts."""

import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from callbacks.curves import Curves
from callbacks.results import Results

REPORT = "report"


class VariantEvents:
    """Event files of one phase of a run, ``<folder>/<variant>/events...<phase>``.

    Opening a phase removes the files that the same phase of an earlier or interrupted run has left there: what is
    written next tells the whole story, and no point stands twice.

    Args:
        folder: the folder to point TensorBoard at.
        phase: a word at the end of the file names, ``fit`` or ``test``.
    """

    def __init__(self, folder: Path, phase: str):
        self.folder, self.phase = folder, phase
        self._writers: dict[str, SummaryWriter] = {}
        for path in folder.glob(f"*/events.out.tfevents.*.{phase}"):
            if not path.parent.is_symlink():  # what a link leads to is no part of the run
                path.unlink()

    def __getitem__(self, variant: str) -> SummaryWriter:
        """Return the writer of ``variant``, opened at first use."""
        if variant not in self._writers:
            self._writers[variant] = SummaryWriter(str(self.folder / variant), filename_suffix=f".{self.phase}")
        return self._writers[variant]

    def scalars(self, variant: str, values: dict[str, float | None], step: int) -> None:
        """Write one point a tag; ``None`` is left out."""
        for tag, value in values.items():
            if value is not None:
                self[variant].add_scalar(tag, value, step)

    def flush(self) -> None:
        """Put everything on disk."""
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Put everything on disk and close the files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()


def write_validation(events: VariantEvents, curves: Curves, step: int) -> None:
    """Write one validation: ``val_accuracy/<task>`` (or the task's metric), ``/mean`` and ``val_normalised/mean``."""
    results = Results(curves.scores(step))
    for name in results.variants:
        values = {f"val_{results.metric(task)}/{task}": results.value(name, task) for task in results.tasks}
        values[f"val_{results.measure}/mean"] = results.mean_value(name)
        values["val_normalised/mean"] = results.mean_normalised(name)
        events.scalars(name, values, step)


def scalars_of_test(results: Results, variant: str) -> dict[str, float | None]:
    """Return every number of a test under its tag."""
    values = {f"test_{results.metric(task)}/{task}": results.value(variant, task) for task in results.tasks}
    values[f"test_{results.measure}/mean"] = results.mean_value(variant)
    values |= {f"test_normalised/{task}": results.normalised(variant, task) for task in results.tasks}
    values["test_normalised/mean"] = results.mean_normalised(variant)
    for space in results.spaces:
        for k in results.hits:
            tag = f"{space}_hits@{k}"
            values |= {f"{tag}/{task}": results.joint(variant, k, task, space) for task in ("all", *results.tasks)}
            values[f"{tag}/mean"] = results.joint(variant, k, "mean", space)
    return values


def write_test(events: VariantEvents, results: Results, step: int, images: dict[str, bytes], text: str) -> None:
    """Write a test: scalars and hyperparameters of every variant, plots and report under ``report``.

    Args:
        events: where to.
        results: what was measured.
        step: training steps taken before.
        images: PNG files by tag.
        text: the report, Markdown; its links to plots are left out.
    """
    for name in results.variants:
        values = scalars_of_test(results, name)
        events.scalars(name, values, step)
        settings = {"variant": name, "settings": results.descriptions.get(name, ""), "seed": results.meta.get("seed")}
        shown = [tag for tag in values if tag.endswith(("/mean", "/all")) and values[tag] is not None]
        # `add_hparams` would open a run of its own inside that of the variant.
        for summary in hparams({k: v for k, v in settings.items() if v is not None}, dict.fromkeys(shown, 0.0)):
            events[name].file_writer.add_summary(summary)
    for tag, content in images.items():
        events[REPORT].file_writer.add_summary(_image(tag, content), step)
    events[REPORT].add_text("report", re.sub(r"!\[.*?\]\(.*?\)\n+", "", text), step)


def write_candidates(
    folder: Path, candidates: Sequence[tuple[str, dict[str, Any], dict[str, float]]], images: dict[str, bytes]
) -> None:
    """Write what a search has measured: ``<folder>/<merge>-<number>/`` a candidate, HParams and each metric.

    TensorBoard takes the columns of its HParams page from one experiment in the folder that it shows, so this folder is
    apart from those of tests, and one experiment has the settings of all candidates.

    Args:
        folder: the folder to point TensorBoard at; what an earlier search has written there is removed.
        candidates: merge, settings and metrics of each.
        images: PNG files of the search by the merge that each shows; they go to ``<folder>/search``.
    """
    for path in folder.glob("*/events.out.tfevents.*.search"):
        path.unlink()
    every: dict[str, Any] = {}
    tags: dict[str, float] = {}
    for number, (merge, settings, metrics) in enumerate(candidates, 1):
        with SummaryWriter(str(folder / f"{merge}-{number}"), filename_suffix=".search") as writer:
            own = {f"search/{name}": value for name, value in metrics.items()}
            _, begin, end = hparams({"merge": merge, **settings}, dict.fromkeys(own, 0.0))
            for summary in (begin, end):
                writer.file_writer.add_summary(summary)
            for tag, value in own.items():
                writer.add_scalar(tag, value, 0)
            every, tags = {"merge": merge, **every, **settings}, {**tags, **own}
    with SummaryWriter(str(folder / "search"), filename_suffix=".search") as writer:
        writer.file_writer.add_summary(hparams(every, tags)[0])
        for merge, content in images.items():
            writer.file_writer.add_summary(_image(f"search/{merge}", content))


def write_analysis(
    folder: Path, kind: str, curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], picture: bytes
) -> None:
    """Write what an analysis has found: ``<folder>/<curve>/`` with its points, the picture under ``report``.

    Args:
        folder: the folder to point TensorBoard at; what an earlier analysis has written there is removed.
        kind: of analysis, the tag of the picture.
        curves: points (step, value) by curve and tag.
        picture: a PNG file.
    """
    events = VariantEvents(folder, "analysis")
    for name, tags in curves.items():
        for tag, points in tags.items():
            for step, value in points:
                events.scalars(name, {tag: value}, step)
    events[REPORT].file_writer.add_summary(_image(kind, picture), 0)
    events.close()


def _image(tag: str, content: bytes) -> Summary:
    # The bytes go in as they are; `add_image` would decode and encode them again.
    width, height = struct.unpack(">II", content[16:24])
    image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=content)
    return Summary(value=[Summary.Value(tag=tag, image=image)])
