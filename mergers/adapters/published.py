"""The .pt files of the KnOTS repository: the whole state dict of a PEFT model, base weights included.

They are what its training scripts save with ``torch.save(model.state_dict(), path)``:

- vision: keys ``vision_model.base_model.model.MODULE.lora_A.default.weight`` (in older files ``lora_model.`` for
  ``vision_model.``), beside the frozen tower and its projection;
- Llama: keys ``base_model.model.MODULE.lora_A.default.weight``, and the classifier as
  ``base_model.model.score.modules_to_save.default.weight``.

No config goes with them. The published code merges B @ A as it is, and its adapters were trained with alpha = r, so the
scale is 1. Modules go by what follows ``base_model.model.``, as in the adapters that the same authors put on the hub.
"""

import re
from pathlib import Path

from torch import Tensor

from mergers.adapters.common import facts_without_config
from mergers.adapters.files import own_copy, read_pickle
from mergers.adapters.heads import check_head
from mergers.adapters.names import PEFT_PREFIX, listed, require_module_name
from mergers.adapters.peft import Pairs, dtypes_of, updates_of
from mergers.errors import SheetbendError
from mergers.updates import Adapter

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])\.(?P<adapter>[^.]+)\.weight", re.DOTALL)
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<parameter>.+)", re.DOTALL)


def load_published(path: Path, name: str, label: str) -> Adapter:
    """Read a ``.pt`` file as the KnOTS repository writes it.

    Args:
        path: The file. Only tensors are accepted; the base weights in it are not read.
        name: Name of the task.
        label: How messages call the adapter.

    Raises:
        SheetbendError: The file holds Python objects, no LoRA, or more than one adapter.
    """
    pairs: Pairs = {}
    heads: dict[str, Tensor] = {}
    adapters: dict[str, None] = {}  # in their order
    for key, tensor in read_pickle(path).items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise SheetbendError(
                f"{label} holds {str(key)[:80]!r}, a {type(tensor).__name__} instead of a tensor; save the state dict "
                "alone, torch.save(model.state_dict(), path)"
            )
        inner = key.rpartition(PEFT_PREFIX)[2]
        # Copies: what was read is mapped from the file, with the whole base model.
        if match := _FACTOR.fullmatch(inner):
            pairs.setdefault((match["module"], False), {})[match["factor"]] = own_copy(tensor, key, path)
        elif match := _SAVED.fullmatch(inner):
            head = f"{match['module']}.{match['parameter']}"
            heads[head] = own_copy(tensor, key, path)
            check_head(head, heads[head], label)
        elif ".lora_" in inner:
            raise SheetbendError(f"adapter {label}: {key!r} is no LoRA on a linear layer; train the adapter without it")
        else:
            continue  # a weight of the base model, which was frozen
        require_module_name(match["module"], label)
        adapters[match["adapter"]] = None
    if not pairs:
        raise SheetbendError(
            f"{label} holds no LoRA tensor; give a PEFT adapter, or load the difference of two full checkpoints"
        )
    if len(adapters) > 1:
        raise SheetbendError(f"{label} holds the adapters {listed(adapters)}; save a file with one of them")
    updates, kinds = updates_of(pairs, lambda module, rank: (rank, 1.0), label)
    metadata = facts_without_config(dtypes_of(pairs), kinds, label)
    return Adapter(updates, name=name, metadata=metadata, heads=heads)
