"""The throughput benchmark, on a ViT of a few thousand weights."""

import pytest
import torch

from benchmarks import throughput

TINY = ["--geometry", "tiny", "--device", "cpu", "--seconds", "0.05", "--runs", "1", "--batch-size", "4"]


def test_every_work_is_measured_on_both_sides(capsys):
    assert throughput.main([*TINY, "--test-batch-size", "8", "--variants", "1", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split("│")[1].strip(): line.split("│")[3:6] for line in lines if line.startswith("│")}
    assert list(rows) == ["training", "test, 1 variant", "test, 3 variants"]
    for cells in rows.values():
        plain, ours, ratio = map(float, cells)
        assert plain > 0 and ours > 0 and ratio == pytest.approx(ours / plain, rel=0.1)


def test_the_clock_leaves_the_warm_up_out():
    bench = throughput.Bench("", throughput.parse_arguments(TINY))
    calls = []
    seconds, count = bench.timed(calls.append, 3)
    assert calls == list(range(throughput.WARM + 3)) and count == 3 and seconds > 0


@pytest.mark.parametrize(
    ("option", "value"), [("--seconds", "0"), ("--batch-size", "-1"), ("--variants", "0"), ("--runs", "0")]
)
def test_options_that_cannot_be_meant_end_it(option, value, capsys):
    with pytest.raises(SystemExit):
        throughput.parse_arguments([option, value])
    assert f"{option} " in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said():
    with pytest.raises(SystemExit):
        throughput.parse_arguments(["--device", "cuda"])
