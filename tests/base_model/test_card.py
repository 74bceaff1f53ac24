import json
import re
from pathlib import Path

import pytest

from base_model import card
from base_model.card import ZeroShot, table, write_card
from base_model.train import parse_arguments

SHIPPED = Path(__file__).resolve().parents[2] / "lightning_modules" / "base_models" / "tiny-clip"
ROWS = [ZeroShot("digits", 10, 360, 0.104, 0.751), ZeroShot("faces", 2, 60, 0.5, 0.9)]


def test_the_table_shows_chance_beside_accuracy():
    assert table(ROWS).splitlines()[2] == "| digits | 10 | 360 | 10.0 | 10.4 | 75.1 |"


def test_a_card_has_no_gap_and_names_the_options_that_are_not_the_defaults(tmp_path):
    record = json.loads((SHIPPED / "training.json").read_text())
    options = {k: v for k, v in vars(parse_arguments(["--output", "x"])).items() if k in record["options"]}
    record["options"] = {**options, "steps": 17}
    (tmp_path / "training.json").write_text(json.dumps(record))
    write_card(tmp_path, ROWS)
    text = (tmp_path / "README.md").read_text()
    assert not re.search(r"\{[a-z_]+\}", text)
    assert re.search(r"tiny-clip --steps 17$", text, re.MULTILINE)
    assert "| faces | 2 | 60 | 50.0 | 50.0 | 90.0 |" in text


def test_the_shipped_card_belongs_to_the_shipped_model():
    text = (SHIPPED / "README.md").read_text()
    record = json.loads((SHIPPED / "training.json").read_text())
    assert f"{record['parameters']} parameters" in text
    assert f"{record['options']['steps']} steps of {record['options']['batch']} pairs" in text
    for task in ("digits", "mnist", "textures", "photographs", "faces"):
        chance, zero_shot = re.search(rf"\| {task} \| \d+ \| \d+ \| ([\d.]+) \| [\d.]+ \| ([\d.]+) \|", text).groups()
        assert float(zero_shot) > float(chance)


def test_a_task_whose_data_is_missing_is_left_out_and_named(monkeypatch, capsys):
    datamodules = pytest.importorskip("datamodules")
    from mergers.errors import SheetbendError

    class Missing:
        def __init__(self, tasks, **options):
            raise SheetbendError(f"task {tasks[0]!r}: no package")

    monkeypatch.setattr(datamodules, "QuickstartDataModule", Missing)
    assert card.measure(SHIPPED, ["digits"]) == []
    assert "digits: left out: task 'digits': no package" in capsys.readouterr().out
