"""The peak of memory that is said before a run: counted rightly, warned of, and without a trace in the run."""

import warnings

import pytest
import torch
from lightning.pytorch.callbacks import TQDMProgressBar

from callbacks import MemoryForecast, MergeCallback
from lightning_modules import LoRA
from lightning_modules.footprint import Held, Need, told
from lightning_modules.lora import adapter_parameters
from mergers import memory
from tests.lightning_modules.training import QUIET, fit

CPU = torch.device("cpu")
MIB = 2**20


def mebibytes(count):
    return torch.zeros(count, MIB // 4)


def test_what_is_held_is_counted_once_and_given_back():
    before = mebibytes(3)
    with Held(CPU) as held:
        one = mebibytes(2)
        views = [one.view(-1), one[0], one.t()]
        before.add_(1)
        assert (held.now, held.peak) == (2 * MIB, 2 * MIB)
        two = one * 2  # and a temporary one
        del one, views
        assert held.now <= held.peak == 4 * MIB
        held.restart()
        assert held.peak == held.now == 2 * MIB
        del two
        assert held.now == 0 and held.peak == 2 * MIB


def test_what_autograd_keeps_is_counted():
    weight = torch.eye(512).requires_grad_()  # one MiB, and its gradient one more
    with Held(CPU) as held:
        loss = (weight @ weight).exp().sum()
        assert held.now == pytest.approx(MIB, abs=1000)  # of exp; what goes into it is not needed again
        loss.backward()
        del loss
        assert held.now == MIB and 3 * MIB <= held.peak <= 5 * MIB
    assert weight.grad is not None


def test_a_large_batch_is_told_from_small_ones():
    assert [told(lambda count: 100 + 7 * count, size) for size in (1, 4, 5, 100)] == [107, 128, 135, 800]


def test_works_one_after_the_other_take_the_larger_and_together_the_sum():
    assert Need(3, 10) | Need(5, 2) == Need(5, 10)
    assert Need(3, 10) + Need(5, 2) == Need(8, 12)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_run_that_is_looked_ahead_to_is_the_same(tiny_clip, tmp_path, checkpointing):
    def run(*callbacks):
        torch.manual_seed(5)
        settings = {"lora": LoRA(r=4, dropout=0.3), "gradient_checkpointing": checkpointing}
        model = fit(tiny_clip, tmp_path, ["hue", "shade"], callbacks, max_epochs=2, **settings)
        found = [adapter_parameters(model.model, task) for task in model.task_names]
        return [value for one in found for value in one.values()], torch.rand(3), model

    forecast = MemoryForecast()
    plain, stream, _ = run()
    ahead, stream_ahead, model = run(forecast, MergeCallback({"mean": "mean"}))
    assert all(torch.equal(one, other) for one, other in zip(plain, ahead, strict=True))
    assert torch.equal(stream, stream_ahead)
    assert forecast.expected["resident"] > memory.resident_memory() / 2
    assert all(part.training for part in model.modules() if isinstance(part, torch.nn.Dropout))


@pytest.mark.parametrize(("free", "warned"), [(10**15, False), (1000, True), (None, False)])
def test_too_little_memory_is_said(tiny_clip, tmp_path, monkeypatch, capsys, free, warned):
    monkeypatch.setattr("callbacks.memory.available_memory", lambda: free)
    monkeypatch.setitem(QUIET, "enable_progress_bar", True)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit(tiny_clip, tmp_path, ["hue"], [MemoryForecast(), TQDMProgressBar()], max_epochs=1)
    messages = [str(one.message) for one in seen]
    assert any("memory may not be enough" in one and "smaller data.batch_size" in one for one in messages) is warned
    assert "expected at the peak: " in capsys.readouterr().out


V1_NAMES = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2_NAMES = ("memory.max", "memory.current", "inactive_file")
V1 = ("5:cpu:/\n4:memory:/own\n0::/\n", "memory/own", *V1_NAMES)
V2 = ("0::/own\n", "own", *V2_NAMES)


@pytest.mark.parametrize(("groups", "folder", "limit", "used", "cache"), [V1, V2, ("0::/own\n", "", *V2_NAMES)])
@pytest.mark.parametrize(
    ("allowed", "taken", "expected"),
    [(5000, 2000, 3500), (5000, 9000, 0), ("max", 2000, 8192), (2**63 - 4096, 0, 8192)],
)
def test_a_containers_limit_counts(tmp_path, monkeypatch, groups, folder, limit, used, cache, allowed, taken, expected):
    own, place = tmp_path / "cgroup", tmp_path / "root" / folder
    own.write_text(groups)
    place.mkdir(parents=True)
    for name, value in ((limit, allowed), (used, taken), ("memory.stat", f"anon 7\n{cache} 500")):
        (place / name).write_text(f"{value}\n")
    left = memory._left_in_container
    monkeypatch.setattr(memory, "_left_in_container", lambda: left(own, tmp_path / "root"))
    monkeypatch.setattr(memory, "_status", lambda name, *_: 8192 if name == "MemAvailable" else 0)
    assert memory.available_memory() == expected


@pytest.mark.parametrize(("job", "step", "expected"), [(4000, "max", 600), (4000, 9000, 600), ("max", 700, 300)])
def test_limits_of_the_groups_above_count(tmp_path, job, step, expected):
    """Schedulers limit a job, and the process is in a step of it."""
    own, place = tmp_path / "cgroup", tmp_path / "root" / "slurm" / "job"
    own.write_text("0::/slurm/job/step\n")
    (place / "step").mkdir(parents=True)
    for folder, allowed, taken in ((place, job, 3900), (place / "step", step, 900)):
        (folder / "memory.max").write_text(f"{allowed}\n")
        (folder / "memory.current").write_text(f"{taken}\n")
        (folder / "memory.stat").write_text("inactive_file 500\n")
    assert memory._left_in_container(own, tmp_path / "root") == expected


def test_where_nothing_is_said_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_status", lambda *_: 0)
    monkeypatch.setattr(memory, "_left_in_container", lambda: None)
    assert memory.available_memory() is None
    monkeypatch.undo()
    assert memory._left_in_container(tmp_path / "none") is None
