"""What a run will take in memory, said before it takes it."""

from collections.abc import Sequence

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.machine import size_words
from callbacks.merge import MergeCallback
from lightning_modules import LoRATasks, TestTimeAdaptation
from lightning_modules.footprint import Need, adapting_need, testing_need, training_need
from mergers import Merger
from mergers.memory import available_memory, resident_memory

# What libraries take that only the end of a run loads, to draw and to write.
LATER = 150_000_000
CURE = "a smaller data.batch_size or data.eval_batch_size, or model.gradient_checkpointing true, needs less"


class MemoryForecast(Callback):
    """Say before training and testing what memory they will take, and warn where there is not as much.

    To be the first callback, so that nothing has been merged yet.

    Attributes:
        expected: peak bytes of this process, and of the GPU if it works there, as `callbacks.machine.peak_bytes` names
            them.
    """

    def __init__(self) -> None:
        self.expected: dict[str, int] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look ahead to training, and to the validations and the test that come with it."""
        if isinstance(pl_module, LoRATasks):
            self._say(trainer, pl_module, training_need(pl_module) | testing_need(pl_module, _merges(trainer)))
        elif isinstance(pl_module, TestTimeAdaptation):
            tests = testing_need(pl_module.tester, _merges(trainer), learned=2)  # the merge, and what it began as
            self._say(trainer, pl_module, adapting_need(pl_module) | tests)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look ahead to a test that comes alone."""
        if isinstance(pl_module, LoRATasks) and not self.expected:
            self._say(trainer, pl_module, testing_need(pl_module, _merges(trainer)))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look ahead to a validation that comes alone."""
        if isinstance(pl_module, LoRATasks) and not self.expected:
            self._say(trainer, pl_module, testing_need(pl_module, _merges(trainer), "val"))

    def _say(self, trainer: Trainer, module: LightningModule, need: Need) -> None:
        # The trials have touched the weights, which are read from disk when they are.
        self.expected = {"resident": resident_memory() + need.host + LATER}
        rows = [("memory", self.expected["resident"], need.host + LATER, available_memory())]
        if module.device.type == "cuda":
            self.expected["gpu"] = torch.cuda.memory_allocated(module.device) + need.device
            held = torch.cuda.memory_reserved(module.device) - torch.cuda.memory_allocated(module.device)
            free = torch.cuda.mem_get_info(module.device)[0] + held
            rows.append(("memory of the GPU", self.expected["gpu"], need.device, free))
        for what, _, more, free in rows:
            if free is not None and more > free:
                rank_zero_warn(
                    f"{what} may not be enough: {size_words(more)} more are needed at the peak, and "
                    f"{size_words(free)} are free; {CURE}"
                )
        if trainer.progress_bar_callback is not None and trainer.is_global_zero:
            words = ", ".join(f"{size_words(expected)} of {what}" for what, expected, *_ in rows)
            print(f"expected at the peak: {words}", flush=True)


def _merges(trainer: Trainer) -> Sequence[Merger]:
    found = [one for one in trainer.callbacks if isinstance(one, MergeCallback)]
    return [merge for one in found for merge in one.mergers.values() if isinstance(merge, Merger)]
