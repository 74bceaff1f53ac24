"""What a search has measured: kept after each sweep, so that nothing is measured twice."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from callbacks.results import Results, checked, csv_text
from launch.searching.settings import Values, readable
from lightning_modules import Score
from mergers import SheetbendError
from mergers.files import atomic_write

FORMAT = 1
FILE = "candidates.json"
TABLE = "candidates.csv"


@dataclass(frozen=True)
class Candidate:
    """One merge with certain settings.

    Attributes:
        merge: its name in the configuration.
        values: what is searched, by dotted names.
        what: the whole merge in one line, in which numbers are shortened.
        configuration: the whole merge, as a configuration has it.
    """

    merge: str
    values: Values
    what: str
    configuration: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        """What no two candidates share."""
        return self.merge, json.dumps(self.configuration, sort_keys=True, default=str)


@dataclass(frozen=True)
class Record:
    """A candidate and what was measured.

    Attributes:
        candidate: which.
        scores: on validation data, the variant's name left out (it is ``merge``).
        seconds: of merging it; its share of the sweep is not told apart.
        failed: why it could not be merged, and so has no scores.
    """

    candidate: Candidate
    scores: tuple[Score, ...]
    seconds: float
    failed: str = ""

    def measured(self) -> dict[str, Any]:
        """Return what was measured, as plain values."""
        return {"scores": [asdict(score) for score in self.scores], "seconds": self.seconds, "failed": self.failed}

    @classmethod
    def of(cls, candidate: Candidate, measured: Mapping[str, Any]) -> "Record":
        """Return the record that `measured` was made of."""
        return cls(candidate, _scores(measured["scores"]), measured["seconds"], measured["failed"])


class Records:
    """All that a search has measured; its files have one merge after the other, and each in its order.

    Args:
        folder: of the search.
        identity: what the scores depend on beside a candidate's settings: adapters, data, model. Records of another
            are refused.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self.folder, self.identity = folder, dict(identity)
        self.references: tuple[Score, ...] = ()
        self.records: dict[tuple[str, str], Record] = {}
        path = folder / FILE
        if path.is_file():
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content["format"]
            if version == FORMAT:
                identity, self.references = dict(content["identity"]), _scores(content["references"])
                for one in content["candidates"]:
                    candidate = Candidate(*(one[name] for name in Candidate.__dataclass_fields__))
                    self.records[candidate.key] = Record.of(replace(candidate, values=dict(candidate.values)), one)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise SheetbendError(
                f"{path} holds no records ({reason}); give another search.name, or remove it"
            ) from None
        if version != FORMAT:
            raise SheetbendError(f"{path} has format {version!r}, not {FORMAT}; give another search.name")
        # As text, since coefficients in a list go by the order of the tasks.
        changed = [name for name, value in self.identity.items() if _text(identity.get(name)) != _text(value)]
        if changed:
            raise SheetbendError(
                f"{path} is of a search with other {changed[0]}; give another search.name, or --overwrite true"
            )

    def __contains__(self, candidate: Candidate) -> bool:
        """Return whether the candidate has been measured."""
        return candidate.key in self.records

    def add(self, records: Sequence[Record], references: Sequence[Score] = ()) -> None:
        """Keep new records, and write them to their file."""
        self.references = tuple(references) or self.references
        self.records |= {record.candidate.key: record for record in records}
        content = {
            "format": FORMAT,
            "identity": self.identity,
            "references": [asdict(score) for score in self.references],
            "candidates": [{**asdict(one.candidate), **one.measured()} for one in self.by_merge()],
        }
        _write(self.folder / FILE, json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n")

    def by_merge(self) -> list[Record]:
        """Return all, those of one merge after those of the other: an interruption may change how merges alternate."""
        return sorted(self.records.values(), key=lambda record: record.candidate.merge)

    def score(self, candidate: Candidate, metric: str) -> float:
        """Return the number that decides, minus infinity of a merge that failed.

        Raises:
            SheetbendError: what was measured does not say it.
        """
        if self.records[candidate.key].failed:
            return -math.inf
        value = self.value(candidate, metric)
        if value is None:
            raise SheetbendError(
                f"search.metric {metric} cannot be computed; finetuned is not above 0 on some task, give another"
            )
        return value

    def value(self, candidate: Candidate, metric: str) -> float | None:
        """Return what a candidate reaches by a metric of `launch.searching.settings.Search`, where that is known."""
        results = self.results(candidate)
        if metric == "normalised":
            return results.mean_normalised(candidate.merge)
        if metric == "mean":
            return results.mean_value(candidate.merge)
        space, _, k = metric.partition("_hits@")
        return results.joint(candidate.merge, int(k), "all", space)

    def failure(self, candidate: Candidate) -> str:
        """Return why a candidate could not be merged, nothing if it could."""
        return self.records[candidate.key].failed

    def results(self, candidate: Candidate) -> Results:
        """Return what was measured of a candidate beside the references."""
        return Results((*self.references, *self.records[candidate.key].scores), split="val")

    def write_table(self, metrics: Sequence[str]) -> None:
        """Write candidates.csv: a row a candidate, a column a setting, a metric and a task."""
        settings = list(dict.fromkeys(name for record in self.by_merge() for name in record.candidate.values))
        tasks = list(dict.fromkeys(score.task for score in self.references if score.task != "all"))
        rows = []
        for number, record in enumerate(self.by_merge(), 1):
            candidate, results = record.candidate, self.results(record.candidate)
            values = readable(candidate.values)
            given = [values.get(name) for name in settings]
            scores = [self.value(candidate, metric) for metric in metrics]
            own = [results.value(candidate.merge, task) for task in tasks]
            rows.append((number, candidate.merge, *given, *scores, *own, record.seconds, candidate.what, record.failed))
        header = ("candidate", "merge", *settings, *metrics, *tasks, "seconds", "what", "failed")
        _write(self.folder / TABLE, csv_text(header, rows))


def _scores(content: list[dict[str, Any]]) -> tuple[Score, ...]:
    return tuple(checked(Score(**one)) for one in content)


def _text(value: Any) -> str:
    return json.dumps(value, default=str)


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
