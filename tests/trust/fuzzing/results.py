"""Run folders, records and caches that somebody else left."""

import copy
import json
import random
from functools import cache
from typing import Any

import torch

from callbacks.event_files import VariantEvents
from callbacks.merge import what_was_merged
from callbacks.results import Results
from launch.reporting.runs import read_runs
from launch.runs import clear, read_checkpoint, resume_point
from launch.searching.records import Records
from launch.series import Finished
from lightning_modules.vector_cache import cached_vectors
from mergers import KnOTS
from mergers.cache import AlignmentCache
from tests.launch.reporting.fabricated import make_config, make_results
from tests.launch.reporting.fabricated import write as write_run
from tests.mergers.builders import random_adapters
from tests.trust.fuzzing.harness import Sandbox, command
from tests.trust.fuzzing.kinds import Kind, Target, write
from tests.trust.fuzzing.mutate import as_json, mutated_bytes, mutated_safetensors, mutated_tree, strange
from tests.trust.fuzzing.pickles import mutated_pickle
from tests.trust.fuzzing.yamls import mutated_yaml


@cache
def _results() -> dict[str, Any]:
    return json.loads(make_results().to_json())


def _reports(rng: random.Random, sandbox: Sandbox) -> Target:
    folder = write_run(sandbox.inputs / "run", make_results(), make_config(), 3)
    match rng.randrange(6):
        case 0 | 1 | 2:
            content = as_json(rng, mutated_tree(rng, _results(), str(sandbox.outside)))
            write(folder / "results.json", content)
        case 3:
            name = rng.choice(["config.yaml", "test_config.yaml"])
            write(folder / name, mutated_yaml(rng, make_config(), str(sandbox.outside)))
        case 4:
            write(folder / "history.csv", _odd_table(rng, (folder / "history.csv").read_bytes()))
        case _:
            name = rng.choice(["results.json", "config.yaml", "history.csv"])
            (folder / name).unlink()
            (folder / name).symlink_to(
                rng.choice([sandbox.outside / "precious", "/dev/zero", "/", name, "/etc/passwd"])
            )
    if rng.random() < 0.04:
        return command("report", folder, "--output", sandbox.output / "report")
    return lambda: read_runs([folder])


def _odd_table(rng: random.Random, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    cells = lines[rng.randrange(len(lines))].split(b",")
    value = str(strange(rng))[:5000].encode("utf-8", "replace")
    cells[rng.randrange(len(cells))] = rng.choice([value, b"", b'"', b"\0", b"nan", b"1e999", b"-1"])
    odd = b",".join(cells)
    lines[rng.randrange(len(lines))] = odd
    return rng.choice([b"".join(lines), mutated_bytes(rng, content), b"".join(lines[1:]), b"\xff\xfe" + content, b""])


RECORDS = {
    "format": 1,
    "identity": {"adapters": "a" * 64, "data": {"digits": "b"}},
    "references": [{"variant": "finetuned", "task": "digits", "metric": "accuracy", "value": 0.9, "count": 10}],
    "candidates": [
        {
            "merge": "ties",
            "values": {"density": 0.2},
            "what": "Ties(density=0.2)",
            "scores": [{"variant": "ties", "task": "digits", "metric": "accuracy", "value": 0.5, "count": 10}],
            "seconds": 1.5,
            "failed": "",
        }
    ],
}
MERGE = {"merger": "Mean", "notes": ["a note"], "settings": {}, "adapters": []}
SERIES = {"format": 1, "finished": {"fit seed-0 x": {"folder": "seed-0", "inputs": "a" * 64, "results": "b" * 64}}}


def _records(rng: random.Random, sandbox: Sandbox) -> Target:
    folder = sandbox.inputs / "run"
    match rng.randrange(4):
        case 0 | 1:
            write(folder / "candidates.json", as_json(rng, mutated_tree(rng, RECORDS)))

            def read() -> None:
                records = Records(folder, RECORDS["identity"])
                for one in records.records.values():
                    records.value(one.candidate, "mean")
                    records.value(one.candidate, "normalised")

            return read
        case 2:
            write(folder / "series.json", as_json(rng, mutated_tree(rng, SERIES)))
            return lambda: Finished(folder, "fit")._read()
        case _:
            write(folder / "merge.json", as_json(rng, mutated_tree(rng, MERGE)))
            return lambda: what_was_merged(folder)


def _checkpoints(rng: random.Random, sandbox: Sandbox) -> Target:
    folder = sandbox.inputs / "run"
    state = {"state_dict": {"a": torch.zeros(2)}, "epoch": 1, "loops": {}, "a": torch.zeros(2, 3)}
    path = write(folder / "checkpoints" / "last.ckpt", mutated_pickle(rng, state, sandbox.canary))
    write(folder / "config.yaml", mutated_yaml(rng, make_config(), str(sandbox.outside)))
    if rng.random() < 0.5:
        return lambda: resume_point(folder, make_config())
    return lambda: read_checkpoint(path, ("state_dict",), "of another run; begin anew")


def _caches(rng: random.Random, sandbox: Sandbox) -> Target:
    """A cache that others may write to: what is damaged is made anew, what lies is not looked at."""
    if rng.random() < 0.3:
        folder = sandbox.cache / "sheetbend" / "heads"
        cached_vectors("facts", lambda: torch.ones(2, 3))
        for path in folder.iterdir():
            path.write_bytes(mutated_safetensors(rng, path.read_bytes()))

        def vectors() -> None:
            found = cached_vectors("facts", lambda: torch.ones(2, 3))
            for path in folder.iterdir():
                path.unlink()
            assert isinstance(found, torch.Tensor)

        return vectors
    cache, space = AlignmentCache(sandbox.cache / "alignments"), KnOTS()
    updates = [adapter["layers.0.q"] for adapter in random_adapters(2)]
    expected = cache.encoder(space)(updates)
    for path in cache.folder.iterdir():
        content = path.read_bytes()
        path.write_bytes(rng.choice([mutated_safetensors, mutated_bytes])(rng, content))

    def encode() -> None:
        found = cache.encoder(space)(updates)
        cache.clear()
        assert torch.equal(found.left, expected.left)

    return encode


def _links(rng: random.Random, sandbox: Sandbox) -> Target:
    """An earlier run that is replaced must take nothing with it that its links lead to."""
    folder = sandbox.output / "run"
    write_run(folder, make_results(), make_config(), 1)
    write(sandbox.outside / "events.out.tfevents.1.fit", b"precious")
    for name in rng.sample(["adapters", "checkpoints", "plots", "tensorboard", "searches", "report.md"], 3):
        (folder / name).symlink_to(sandbox.outside)
    events = folder / "tensorboard"
    if not events.is_symlink():
        events.mkdir()
        (events / "training").symlink_to(sandbox.outside)
    if rng.random() < 0.5:
        return lambda: VariantEvents(events, "fit").close()

    def clean() -> None:
        clear(folder)

    return clean


def _round_trip(rng: random.Random, sandbox: Sandbox) -> Target:
    """What is accepted can be written again and says the same."""
    content = as_json(rng, mutated_tree(rng, _results()))

    def run() -> None:
        found = Results.from_json(content.decode("utf-8", "replace"))
        again = Results.from_json(found.to_json())
        assert len(copy.copy(again).scores) == len(found.scores)
        found.to_csv()

    return run


KINDS = (
    Kind("run-folders", "results.json, config.yaml and history.csv, read by sheetbend report", 1500, 60, _reports, 60),
    Kind("results", "results.json, read and written again", 1500, 60, _round_trip),
    Kind("records", "candidates.json, series.json and merge.json", 1000, 40, _records),
    Kind("run-checkpoints", "last.ckpt and config.yaml of a run that goes on", 800, 30, _checkpoints),
    Kind("caches", "entries of the caches of alignments and class vectors", 800, 40, _caches),
    Kind("run-links", "links out of a run folder that is replaced", 60, 10, _links),
)
