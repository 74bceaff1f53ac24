"""Classification heads of text models: one a task, trained beside its adapter or taken from where it was published."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_modules.adapter_folders import fill_in
from mergers import SheetbendError, load_adapter
from mergers.adapters.differences import stored_tensors
from mergers.adapters.files import own_copy, read_pickle
from mergers.adapters.hub import is_hub_id
from mergers.seeding import derive_seed

#: What transformers calls the head of a model for sequence classification; PEFT knows the same two names.
HEAD_NAMES = ("classifier", "score")


class FirstToken(nn.Module):
    """Stands in the place of a head that looks at the first token alone, and passes that token on."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (N, d) of (N, L, d)."""
        return hidden[:, 0]


def take_head(model: nn.Module, backbone: str) -> tuple[str, nn.Module]:
    """Take the head off a model for sequence classification, which then gives what its head would have seen.

    A linear head leaves the features of the pooled token, (N, d); one with layers of its own (RoBERTa's) must look at
    the first token alone, and leaves that.

    Args:
        model: of transformers; its head is replaced.
        backbone: how messages call the model.

    Returns:
        The name of the head in the model, and the head.

    Raises:
        SheetbendError: the model has no head of a known name, or one that looks at more than the first token.
    """
    name = next((name for name in HEAD_NAMES if isinstance(getattr(model, name, None), nn.Module)), None)
    if name is None:
        raise SheetbendError(
            f"backbone {backbone!r}: {type(model).__name__} has no head named {' or '.join(HEAD_NAMES)}; give a model "
            "like Llama, GPT-2, BERT or RoBERTa"
        )
    head = getattr(model, name)
    if not isinstance(head, nn.Linear):
        _check_first_token_alone(head, backbone)
    setattr(model, name, nn.Identity() if isinstance(head, nn.Linear) else FirstToken())
    return name, head


def _check_first_token_alone(head: nn.Module, backbone: str) -> None:
    """Raise unless ``head`` gives the same for (N, L, d) as for its first token."""
    width = next(layer.in_features for layer in head.modules() if isinstance(layer, nn.Linear))
    hidden = torch.linspace(-1, 1, 2 * 3 * width).reshape(2, 3, width)
    probe = copy.deepcopy(head).float().eval()
    try:
        with torch.no_grad():
            alone = torch.equal(probe(hidden), probe(hidden[:, :1]))
    except (TypeError, RuntimeError, IndexError):
        alone = False
    if not alone:
        raise SheetbendError(
            f"backbone {backbone!r}: its head {type(head).__name__} looks at more than the first token; give a model "
            "like Llama, GPT-2, BERT or RoBERTa"
        )


def new_head(like: nn.Module, classes: int, std: float, seed: int, task: str) -> nn.Module:
    """Return a fresh float32 head for ``classes`` classes, of the make of ``like``.

    Weights are normal with deviation ``std`` and biases zero, as in transformers; they depend on (seed, task) alone.
    """
    head = copy.deepcopy(like).float()
    if isinstance(head, nn.Linear):
        head = nn.Linear(head.in_features, classes, bias=head.bias is not None)
    else:
        name, last = [(name, part) for name, part in head.named_modules() if isinstance(part, nn.Linear)][-1]
        owner, _, own = name.rpartition(".")
        setattr(head.get_submodule(owner), own, nn.Linear(last.in_features, classes, bias=last.bias is not None))
    generator = torch.Generator().manual_seed(derive_seed(seed, task, "head"))
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return head


def fill_head(head: nn.Module, tensors: Mapping[str, Tensor], name: str, task: str, classes: int) -> None:
    """Copy published tensors into the head of ``task``.

    Args:
        head: a fresh head, filled in place.
        tensors: by their names in the model: ``score.weight``, ``classifier.dense.bias``.
        name: of the head in the model.
        task: how messages call it.
        classes: of the task, for messages.

    Raises:
        SheetbendError: names or shapes differ.
    """
    given = {key.removeprefix(f"{name}."): value for key, value in tensors.items()}
    expected = {key: tuple(value.shape) for key, value in head.state_dict().items()}
    odd = sorted(set(given) ^ set(expected))
    if odd:
        raise SheetbendError(
            f"head of task {task}: it holds {', '.join(sorted(tensors)) or 'nothing'}, but the model's head {name} has "
            f"{', '.join(expected)}; give one that was trained on this kind of model"
        )
    for key, shape in expected.items():
        if tuple(given[key].shape) != shape:
            raise SheetbendError(
                f"head of task {task}: {name}.{key} is {tuple(given[key].shape)}, but this model and the task's "
                f"{classes} classes need {shape}; give the head of this task and backbone"
            )
    head.load_state_dict({key: value.float() for key, value in given.items()})


def find_heads(source: str | dict[str, str], tasks: Sequence[str], name: str) -> dict[str, dict[str, Tensor]]:
    """Return the published heads of the tasks that ``source`` names.

    Args:
        source: one of what `read_head` reads, with ``{task}`` in it where each task has its own; or a map from task to
            one each.
        tasks: the names of the tasks.
        name: of the head in the model.

    Raises:
        SheetbendError: a head is not there or cannot be read; or the map names a task that this run has not.
    """
    if isinstance(source, dict):
        unknown = [task for task in source if task not in tasks]
        if unknown:
            raise SheetbendError(
                f"model.heads names {unknown[0]!r}, which is no task of this run ({', '.join(tasks)}); leave it out"
            )
        return {task: read_head(place, task, name) for task, place in source.items()}
    return {task: read_head(fill_in(source, task), task, name) for task in tasks}


def read_head(source: str, task: str, name: str) -> dict[str, Tensor]:
    """Return one task's head, by the names that its parameters have in the model.

    Args:
        source: a file as KnOTS publishes its heads (``heads.pt``: a map from task to (classes, d), read with
            weights_only); a PEFT folder that holds a head; or a full checkpoint of a classifier: a folder, a file of
            a state dict, or a hub id.
        task: name of the task.
        name: of the head in the model.

    Raises:
        SheetbendError: there is no head of ``task``.
    """
    path = Path(source)
    if path.suffix == ".pt" and path.is_file():
        entries = read_pickle(path)
        if task in entries and isinstance(entries[task], Tensor):
            return {f"{name}.weight": own_copy(entries[task], task, path)}
        if not any(str(key).startswith(f"{name}.") for key in entries):
            raise SheetbendError(
                f"{source} holds heads of {', '.join(map(str, list(entries)[:20]))}, none of {task!r}; give a map "
                f"from task to file: {task}: PATH"
            )
    if is_hub_id(source) or (path / "adapter_config.json").is_file():
        tensors = dict(load_adapter(source, name=task).heads)
    else:
        stored = stored_tensors(source)
        tensors = {key: part.read() for key, part in stored.items() if key.startswith(f"{name}.")}
    if not tensors:
        raise SheetbendError(f"{source} holds no head {name} for task {task}; give a folder or file that does")
    return tensors
