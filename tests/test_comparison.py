"""The whole comparison: every preset is in it, or stands there under another name because it gives the same."""

from pathlib import Path

import pytest
import torch
import yaml

from launch.searching.settings import Search
from mergers import PRESETS, Adapter, LowRankUpdate, Merger

CONFIG = yaml.safe_load((Path(__file__).resolve().parents[1] / "configs" / "comparison.yaml").read_text())
LISTED = CONFIG["trainer"]["callbacks"][0]["init_args"]["mergers"]
TASKS, RANK, SIZE = len(CONFIG["data"]["init_args"]["tasks"]), CONFIG["model"]["init_args"]["lora"]["r"], 128


def same_as(name):
    """The merge of the comparison that a preset outside it should equal."""
    base = name.removeprefix("knots-").removeprefix("core-")
    return f"core-{base}" if base.startswith("cart") else base


@pytest.fixture(scope="module")
def adapters():
    """Of the quickstart's shape: one layer, as many tasks, the same rank."""
    generator = torch.Generator().manual_seed(0)

    def update():
        B, A = torch.randn(SIZE, RANK, generator=generator), torch.randn(RANK, SIZE, generator=generator)
        return LowRankUpdate(A=A / SIZE, B=B / RANK)

    return [Adapter({"layer": update()}, f"task_{index}") for index in range(TASKS)]


def test_merges_have_the_names_of_their_presets():
    assert all(preset == name for name, preset in LISTED.items() if isinstance(preset, str))
    assert {name for name, preset in LISTED.items() if not isinstance(preset, str)} == {
        f"{space}star-ties" for space in ("", "knots-", "core-")
    }


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in LISTED])
def test_what_is_left_out_gives_the_same_as_what_is_there(name, adapters):
    other = same_as(name)
    assert other in LISTED
    left_out, there = (Merger.preset(one).merge(adapters).dense()["layer"] for one in (name, other))
    torch.testing.assert_close(left_out, there, rtol=1e-3, atol=1e-5 * float(there.abs().max()) + 1e-7)


def test_every_merge_is_searched_over_what_it_has():
    mergers = {name: Merger.preset(one) if isinstance(one, str) else Merger(**one) for name, one in LISTED.items()}
    settings = CONFIG["search"]
    spaces = Search(**settings).spaces(mergers)
    assert set(settings["of"]) == set(LISTED)
    assert [name for name, space in spaces.items() if not space] == ["mean"]
