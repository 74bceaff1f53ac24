"""One way in for every adapter."""

from pathlib import Path

from mergers.adapters.heads import HEAD_FILE, PUBLISHED_HEADS_FILE
from mergers.adapters.hub import fetch, is_hub_id
from mergers.adapters.peft import CONFIG_FILE, PICKLED_WEIGHTS_FILE, WEIGHTS_FILE, load_peft_folder
from mergers.adapters.published import load_published
from mergers.errors import SheetbendError
from mergers.updates import Adapter


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
    if is_hub_id(source):
        files = (CONFIG_FILE, WEIGHTS_FILE, PICKLED_WEIGHTS_FILE, HEAD_FILE, PUBLISHED_HEADS_FILE)
        return load_peft_folder(fetch(label, files), name or label.partition("@")[0].rpartition("/")[2], label)
    path = Path(source)
    if path.suffix == ".pt":
        return load_published(path, name or path.stem, label)
    try:
        if path.is_file():
            raise SheetbendError(f"{path} is a file; give the folder of a PEFT adapter, or a .pt file of KnOTS")
        name = name or path.resolve().name
    except PermissionError:
        raise SheetbendError(f"{path} may not be read; give yourself the permission (chmod u+rx)") from None
    return load_peft_folder(path, name, label)
