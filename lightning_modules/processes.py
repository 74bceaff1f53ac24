"""Training by several processes, each with a part of every batch."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed, nn

from mergers import SheetbendError


class AdapterDDP(DDPStrategy):
    """Lightning's ``ddp`` without a wrapper around the model, for `LoRATasks`, which sums its gradients itself.

    A step trains the adapter of one task. `torch.nn.parallel.DistributedDataParallel` would send the gradients of all
    of them, and would wait for those that no process has.
    """

    def configure_ddp(self) -> None:
        """Give every process the first one's values of what is trained."""
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                distributed.broadcast(parameter.data, 0)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give every process the sum of all processes' gradients; a parameter that has none anywhere keeps none.

    Args:
        parameters: the same ones in every process, in one order; all on one device.
    """
    parameters = list(parameters)
    found = torch.tensor([p.grad is not None for p in parameters], device=parameters[0].device).float()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([found, *(gradient.flatten().float() for gradient in gradients)])
    distributed.all_reduce(flat)
    sizes = [len(parameters), *(p.numel() for p in parameters)]
    found, *sums = flat.split(sizes)
    for parameter, has, total in zip(parameters, found.tolist(), sums, strict=True):
        parameter.grad = total.view_as(parameter).to(parameter.dtype) if has else None


def summed(number: int, device: torch.device) -> Tensor:
    """Return the sum of every process's ``number``, a float32 scalar on ``device``."""
    number = torch.tensor(float(number), device=device)
    distributed.all_reduce(number)
    return number


def in_all_processes(items: list[Any]) -> list[Any]:
    """Return the items of every process, those of the first one first."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return items
    parts: list[list[Any]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def check_processes(before: int | None, now: int) -> None:
    """Refuse to go on in another number of processes, since each has a batch of its own.

    Args:
        before: those of a checkpoint; none without one.
        now: those of the run that is to go on.
    """
    if before is not None and before != now:
        raise SheetbendError(
            f"checkpoint is of another number of devices ({before} there, {now} now); give --trainer.devices {before}, "
            "or --overwrite true to begin again"
        )
