import pytest
import torch

from benchmarks import memory_plan
from benchmarks.memory_plan import LLAMA_3_8B, SMALL, Setting, expected_step, measured_step, training

TINY = {**SMALL, "hidden_size": 64, "intermediate_size": 224, "num_hidden_layers": 3, "vocab_size": 100}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_sum_is_what_a_step_takes(checkpointing):
    setting = Setting(TINY, tasks=2, rank=4, tokens=256, dtype=torch.float32)
    assert measured_step(setting, "cpu", checkpointing) == pytest.approx(expected_step(setting, checkpointing), rel=0.1)


def test_eight_thousand_million_parameters_fit_48_gb():
    setting = Setting(LLAMA_3_8B)
    trained, tested = training(setting), memory_plan.testing(setting)
    # 32 layers of 218 million, the embedding of 525 million, the last norm.
    assert trained["frozen weights"] == 2 * (
        32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096) + 128256 * 4096 + 4096
    )
    assert trained["adapters"] == 4 * 6 * 32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024))
    whole = sum(value for name, value in trained.items() if name != "activations, checkpointed")
    assert whole < 48e9 and trained["activations, checkpointed"] < trained["activations"] / 10
    assert tested["6 merges as branches"] < tested["6 merges as dense weights"] / 10
    assert tested["frozen weights"] + tested["6 merges as dense weights"] < 48e9
