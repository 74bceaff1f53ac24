"""Where a base model comes from: a local folder, one that ships with Sheetbend, or the hub."""

import contextlib
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import is_offline_mode, try_to_load_from_cache
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from mergers import SheetbendError
from mergers.adapters.files import one_line, read_json
from mergers.adapters.reachable import asked_if_it_answers, cache_only

SHIPPED = Path(__file__).parent / "base_models"
# Best first; a repository often has the same weights in several forms.
WEIGHTS = (
    re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"),
    re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?"),
)
BESIDE_WEIGHTS = (".json", ".txt", ".model", ".jinja")
# What is raised of files that are not there or damaged; all else is about what a class does not take.
_UNREADABLE = (OSError, SafetensorError, json.JSONDecodeError, UnicodeDecodeError)


@dataclass(frozen=True)
class HubFiles:
    """Some files of a model, adapter or head on the hub.

    Attributes:
        name: ``org/name``.
        revision: branch, tag or commit; none: the main branch.
        choose: returns those of a repository's files that a run reads; none of them if it is not what it should be.
    """

    name: str
    revision: str | None
    choose: Callable[[Sequence[str]], list[str]]

    def __str__(self) -> str:
        """Return what messages call it."""
        return f"hub model {self.name}" + (f" ({self.revision})" if self.revision else "")


def source(name: str) -> HubFiles | Path:
    """Return what a run reads of a model of transformers: its folder, or files on the hub; reads nothing."""
    place = locate(name)
    return Path(place) if Path(place).is_dir() else HubFiles(name, None, checkpoint_files)


def checkpoint_files(names: Sequence[str]) -> list[str]:
    """Return the files of a model that are read: settings, tokenizer and one set of weights, safetensors if there is.

    >>> checkpoint_files(["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "onnx/model.onnx"])
    ['config.json', 'model.safetensors']
    """
    top = [name for name in names if "/" not in name]
    weights = next((found for form in WEIGHTS if (found := [name for name in top if form.fullmatch(name)])), [])
    beside = [name for name in top if name.endswith(BESIDE_WEIGHTS) and not name.endswith(".index.json")]
    return sorted({*beside, *weights}) if weights else []


def shipped_models() -> list[str]:
    """Return the names of the base models that come with Sheetbend."""
    return sorted(path.name for path in SHIPPED.glob("*/") if (path / "config.json").is_file())


def locate(name: str) -> str:
    """Return what ``from_pretrained`` should be given for ``name``.

    A folder that exists wins, then the name of a shipped model; anything else is a hub id (``owner/model``).
    """
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise SheetbendError(f"backbone {name!r} is a folder without config.json; give a model folder or a hub id")
        return name
    if name in shipped_models():
        return str(SHIPPED / name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        shipped = ", ".join(shipped_models())
        raise SheetbendError(
            f"backbone {name!r} is no folder here and no hub id (owner/model); models that ship: {shipped}"
        )
    return name


def base_name(name: str) -> str:
    """Return the name that adapters carry for their base: never a path of this machine.

    >>> base_name("openai/clip-vit-base-patch32")
    'openai/clip-vit-base-patch32'
    >>> base_name("/tmp/models/my-clip/")
    'my-clip'
    """
    path = Path(name)
    return path.name if path.is_absolute() or path.is_dir() or name.startswith((".", "~")) else name


def load_pretrained(loader: Callable[..., Any], name: str, **options: Any) -> Any:
    """Call ``loader`` (some ``from_pretrained``) for ``name``; say in one line what is missing or damaged if it fails.

    What ``loader`` says against a whole model, such as that it is of another kind, is left to the caller. Code that
    comes with a model is never run.
    """
    source = locate(name)
    on_hub = not Path(source).is_dir()
    try:
        with _quiet(), asked_if_it_answers() if on_hub else contextlib.nullcontext():
            return loader(source, trust_remote_code=False, **options)
    except Exception as error:
        _check_settings(name)
        if not isinstance(error, _UNREADABLE):
            raise
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        if not on_hub:
            raise SheetbendError(
                f"backbone {name!r} could not be loaded: {reason}; give a folder with a whole model, or a hub id"
            ) from None
        if is_offline_mode():
            offline = " (HF_HUB_OFFLINE is set)"
        else:
            offline = " (the hub cannot be reached)" if cache_only() else ""
        raise SheetbendError(
            f"backbone {name!r} could not be loaded{offline}: {reason}; give a model folder, or download it first "
            f"with `hf download {name}`"
        ) from None


def _check_settings(name: str) -> None:
    """Raise `SheetbendError` if the config.json of a model that is here is one that transformers cannot read."""
    source = locate(name)
    path = Path(source) / "config.json" if Path(source).is_dir() else try_to_load_from_cache(name, "config.json")
    if not isinstance(path, str | Path):
        return
    try:
        settings = read_json(Path(path))
        if "model_type" not in settings:
            raise SheetbendError("its config.json has no model_type; give a model that transformers has saved")
        with _quiet():
            AutoConfig.from_pretrained(Path(path).parent, trust_remote_code=False)
    except SheetbendError as error:
        raise SheetbendError(f"backbone {name!r}: {error}") from None
    except Exception as error:  # each model checks its own settings
        raise SheetbendError(
            f"backbone {name!r}: transformers does not take its config.json ({one_line(error)}); give another model, "
            "or save this one again"
        ) from None


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of the model ``name``; one without a pad token pads with its end-of-sequence token."""
    try:
        tokenizer = load_pretrained(AutoTokenizer.from_pretrained, name)
    except (ValueError, KeyError) as error:  # transformers says so of a folder with a model alone
        if isinstance(error, SheetbendError):
            raise
        reason = " ".join(str(error).split())[:120]
        raise SheetbendError(f"backbone {name!r} has no tokenizer ({reason}); save one in its folder") from None
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise SheetbendError(
                f"backbone {name!r}: its tokenizer has neither a pad nor an end-of-sequence token; save it with one"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from listing the half of a checkpoint that a tower leaves out; downloads keep their bars.

    Those of the hub's package show on a terminal alone.
    """
    level, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub_bars = disable_progress_bars if are_progress_bars_disabled() else enable_progress_bars
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # which turns off those of the hub too
    hub_bars()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()
        hub_bars()


def content_key(name: str) -> str:
    """Return a short hash that changes when the model does: of a folder's files, or of the hub's revision."""
    source = Path(locate(name))
    digest = hashlib.sha256()
    if source.is_dir():
        for path in sorted(path for path in source.iterdir() if path.is_file()):
            with path.open("rb") as file:
                digest.update(path.name.encode())
                digest.update(hashlib.file_digest(file, "sha256").digest())
    else:
        # The cache keeps a file in a folder named after its revision. A model that is not there is no one's double.
        cached = try_to_load_from_cache(name, "config.json")
        revision = Path(cached).parent.name if isinstance(cached, str) else uuid.uuid4().hex
        digest.update(f"{name}@{revision}".encode())
    return digest.hexdigest()[:16]


def checkpoint_activations(model: nn.Module) -> None:
    """Let a model of transformers compute its activations again in the backward pass.

    Raises:
        SheetbendError: it cannot.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise SheetbendError(f"gradient_checkpointing is true, but {type(model).__name__} has none; leave it out")
    # The newer name, where there is one; the older warns that it will go.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
