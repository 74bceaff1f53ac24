"""What tests of `sheetbend merge` share: small adapters, and commands that must work or must not."""

from pathlib import Path

import pytest
import torch

from launch.cli import main
from mergers import Adapter, LowRankUpdate, load_adapter, save_adapter, save_merged

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {"layers.0.q_proj": (24, 16), "layers.1.q_proj": (24, 16)}


def write_adapter(path, seed=0, rank=3, shapes=SHAPES, base="org/base"):
    generator = torch.Generator().manual_seed(seed)
    updates = {
        module: LowRankUpdate(
            torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)
        )
        for module, (rows, columns) in shapes.items()
    }
    save_adapter(Adapter(updates, path.name, base_model=base), path)
    return str(path)


def run(capsys, *words):
    """Run a command that must work; return what it printed."""
    main([str(word) for word in words])
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def refused(capsys, *words):
    """Run a command that must fail as the user's fault; return its one line."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    assert stop.value.code == 2, captured
    assert captured.err.startswith("sheetbend: error: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


def same(folder, merger, adapters, **options):
    """Whether a folder holds what the library makes of these adapters, byte for byte."""
    expected = folder.parent / "expected"
    save_merged(merger, [load_adapter(path) for path in adapters], expected, **options)
    name = "adapter_model.safetensors"
    return (folder / name).read_bytes() == (expected / name).read_bytes()


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
