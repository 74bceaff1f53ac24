"""A data set is downloaded from a hub on this machine, and read again when that hub is gone."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import Dataset

from tests.hub_stand_in import HubStandIn, serving

CARD = """---
configs:
- config_name: words
  data_files:
  - split: train
    path: words/train-*
  - split: test
    path: words/test-*
---
"""
# What a run does: each line of output is one table or one error.
CLIENT = """
import json, sys
from datamodules.sources.tables import Hub, column, read_table
from mergers import SheetbendError
for name, split in json.loads(sys.argv[1]):
    try:
        print(json.dumps(column(read_table(Hub(name, "words"), split), "text")))
    except SheetbendError as error:
        print(error)
"""


def client(folder, port, wanted):
    """Read tables in a process of its own, since the hub's package reads its settings once; return lines, seconds."""
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(folder / "home"),
        "SHEETBEND_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "NO_PROXY": "127.0.0.1",
    }
    start = time.monotonic()
    command = [sys.executable, "-c", CLIENT, json.dumps(wanted)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert not done.stderr
    return done.stdout.splitlines(), time.monotonic() - start


@pytest.fixture
def files(tmp_path):
    (tmp_path / "files" / "words").mkdir(parents=True)
    (tmp_path / "files" / "README.md").write_text(CARD)
    for split in ("train", "test"):
        table = Dataset.from_dict({"text": [f"{split} {i}" for i in range(3)]})
        table.to_parquet(tmp_path / "files" / "words" / f"{split}-00000-of-00001.parquet")
    return tmp_path


@pytest.mark.slow
def test_download_then_no_answer(files):
    hub = HubStandIn()
    hub.repositories["datasets/someone/words"] = files / "files"
    with serving(hub) as address:
        port = int(address.rpartition(":")[2])
        lines, _ = client(files, port, [("someone/words", "train"), ("someone/else", "train")])
    assert json.loads(lines[0]) == ["train 0", "train 1", "train 2"]
    assert lines[1].startswith("hub data set someone/else (words) is not on the hub, or is private;")
    assert not list((files / "home").rglob("test-*")), "a split that nobody asked for was downloaded"
    # Connections are taken and nothing is ever said: what is here is read, and the wait is paid once.
    with socket.create_server(("127.0.0.1", port)):
        wanted = [("someone/words", "train")] * 3 + [("someone/words", "test")]
        lines, seconds = client(files, port, wanted)
    assert [json.loads(line) for line in lines[:3]] == [["train 0", "train 1", "train 2"]] * 3
    assert "and the hub cannot be reached; run `sheetbend prepare` where it can" in lines[3]
    assert seconds < 60
