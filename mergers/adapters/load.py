"""One way in for every adapter."""

from pathlib import Path

from mergers.adapters.files import one_line
from mergers.adapters.heads import HEAD_FILE, PUBLISHED_HEADS_FILE
from mergers.adapters.hub import fetch, is_hub_id, repository_name
from mergers.adapters.peft import CONFIG_FILE, PICKLED_WEIGHTS_FILE, WEIGHTS_FILE, load_peft_folder
from mergers.adapters.published import load_published
from mergers.errors import SheetbendError
from mergers.updates import Adapter

# What is read of an adapter's repository on the hub; those of them that it has.
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE, PICKLED_WEIGHTS_FILE, HEAD_FILE, PUBLISHED_HEADS_FILE)


def load_adapter(source: str | Path, name: str | None = None) -> Adapter:
    """Read an adapter from wherever it is.

    Args:
        source: A PEFT folder; a hub id ``org/name`` or ``org/name@revision``, if no such path exists here; or a
            ``.pt`` file as the KnOTS repository writes it.
        name: Name of the task; the folder's or file's own name if not given.

    Returns:
        An adapter of `LowRankUpdate` in the dtype of its file, with PEFT's scale folded into ``scale``.

    Raises:
        SheetbendError: It is no adapter, or holds what cannot be merged; the message names it.
    """
    label = str(source)
    try:
        Path(source).stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # a name that no file can have, or a folder that may not be entered
        raise SheetbendError(f"{label[:200]!r} cannot be looked at ({one_line(error)}); give another path") from None
    if is_hub_id(source):
        return load_peft_folder(fetch(label, ADAPTER_FILES), name or repository_name(label), label)
    path = Path(source)
    if path.suffix == ".pt":
        return load_published(path, name or path.stem, label)
    if path.is_file():
        raise SheetbendError(f"{path} is a file; give the folder of a PEFT adapter, or a .pt file of KnOTS")
    return load_peft_folder(path, name or path.resolve().name, label)
