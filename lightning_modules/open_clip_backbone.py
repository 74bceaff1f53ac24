"""open_clip's models (Ilharco et al., 2021) as vision encoders with a text tower.

Their names:

- ``open_clip:ViT-B-32/laion2b_s34b_b79k``: a model of ``open_clip.list_models()`` and one of its pretrained tags.
- ``open_clip:ViT-B-32/runs/weights.safetensors``: the same with a file of weights, ``.safetensors`` or ``.pt`` of a
  state dict; an absolute path gives two slashes. The file may be of the vision tower alone, or of a module that holds
  the model under one name, such as ``model.visual.conv1.weight``. OpenAI's weights, and what was trained from them,
  need QuickGELU: ``open_clip:ViT-B-32-quickgelu/...``.
- ``open_clip:folder`` or ``open_clip:hf-hub:owner/name``: a folder, or a repository of the hub, with
  ``open_clip_config.json``.
"""

import contextlib
import fnmatch
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn

from datamodules.images import ImageTransform
from lightning_modules.backbones import BESIDE_WEIGHTS, HubFiles
from lightning_modules.image_backbones import OPEN_CLIP, ImageBackbone
from lightning_modules.text_heads import TextEncoder
from mergers import SheetbendError
from mergers.adapters.files import one_line, read_json, read_pickle, read_safetensors
from mergers.adapters.hub import fetch
from mergers.adapters.reachable import asked_if_it_answers
from mergers.errors import did_you_mean

HUB = "hf-hub:"  # open_clip's own word
CONFIG = "open_clip_config.json"
_WEIGHTS = (
    ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
    ("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pt"),
)
_TOKENIZER = ("*.json", "*.txt", "*.model")


class OpenClipBackbone(ImageBackbone):
    """The vision tower of an open_clip model; see the top of this file for names."""

    def __init__(self, name: str):
        self.name = self.base_name = name
        self.has_text = True
        self._folder: Path | None = None  # with CONFIG
        self._file: Path | None = None  # the user's own
        self._tag: dict[str, Any] = {}
        given, self._repository, model, weights = _parts(name)
        if self._repository or Path(given).is_dir():
            self._take_folder(given)
        elif model in open_clip.list_models():
            self._take_model(model, weights)
        else:
            raise SheetbendError(
                f"backbone {name!r}: open_clip has no model {model!r}{did_you_mean(model, open_clip.list_models())}; "
                f"give {OPEN_CLIP}MODEL/TAG, {OPEN_CLIP}MODEL/FILE, {OPEN_CLIP}FOLDER or {OPEN_CLIP}{HUB}OWNER/NAME"
            )

    @classmethod
    def source(cls, name: str) -> HubFiles | Path:
        """Return the repository, folder or file that ``name`` is read from."""
        given, repository, model, weights = _parts(name)
        if repository:
            return HubFiles(repository, None, open_clip_files)
        if Path(given).is_dir():
            return Path(given)
        tag = get_pretrained_cfg(model, weights)
        if not tag:
            return Path(weights or given).expanduser()
        repository, file = _published(tag)
        return HubFiles(repository, None, partial(fnmatch.filter, pat=file) if file else open_clip_files)

    def _take_model(self, model: str, weights: str) -> None:
        tags = open_clip.list_pretrained_tags_by_model(model)
        self._tag = get_pretrained_cfg(model, weights)
        if not self._tag and not Path(weights).is_file():
            raise SheetbendError(
                f"backbone {self.name!r}: {weights!r} is no file and no pretrained tag of {model} "
                f"({', '.join(tags) or 'it has none'}); give one of both"
            )
        self._model = model
        config = open_clip.get_model_config(model)
        settings = [get_pretrained_cfg(model, tag) for tag in tags]
        if self._tag:
            preprocess = self._tag
        else:
            self._file = Path(weights)
            self.base_name = f"{OPEN_CLIP}{model}/{self._file.name}"
            # What all published weights of this model agree on holds for a file too.
            agreed = {json.dumps(_preprocess(one)) for one in settings}
            preprocess = settings[0] if len(agreed) == 1 else {}
        self._prepare(config, preprocess)

    def _take_folder(self, given: str) -> None:
        if self._repository:
            self._folder = self._fetch(self._repository, _TOKENIZER)
        else:
            self._folder = Path(given)
            self.base_name = OPEN_CLIP + self._folder.resolve().name
        if not (self._folder / CONFIG).is_file():
            raise SheetbendError(f"backbone {self.name!r} has no {CONFIG}; give a model that open_clip saved")
        config = read_json(self._folder / CONFIG)
        if "model_cfg" not in config:
            raise SheetbendError(f"backbone {self.name!r}: {CONFIG} has no model_cfg; save or download it again")
        self._model = f"local-dir:{self._folder}"
        self._prepare(config["model_cfg"], config.get("preprocess_cfg", {}))

    def _prepare(self, config: dict[str, Any], preprocess: dict[str, Any]) -> None:
        given = _preprocess(preprocess)
        self.transform = ImageTransform.from_open_clip({**given, "size": config["vision_cfg"].get("image_size", 224)})
        self.mean, self.std = tuple(given["mean"]), tuple(given["std"])

    def _fetch(self, repository: str, patterns: tuple[str, ...]) -> Path:
        try:
            return fetch(repository, patterns)
        except SheetbendError as error:
            raise SheetbendError(
                f"backbone {self.name!r}: {error}; a file of weights is given as {OPEN_CLIP}MODEL/FILE"
            ) from None

    @cached_property
    def _weights(self) -> Path:
        """The file of weights, downloaded if it must be."""
        if self._file is not None:
            return self._file
        repository, wanted = self._repository, _WEIGHTS
        if self._tag:
            repository, file = _published(self._tag)
            wanted = ((file,),) if file else _WEIGHTS
        for names in wanted:
            folder = self._fetch(repository, names) if repository else self._folder
            found = [folder / one for one in names if (folder / one).is_file()]
            if found:
                return found[0]
        raise SheetbendError(f"backbone {self.name!r} has no weights such as {_WEIGHTS[0][1]}; download it again")

    def content_key(self) -> str:
        """Return a short hash of the weights and of what they are run as."""
        with self._weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        digest.update(self._model.removesuffix(str(self._folder)).encode())
        if self._folder is not None:
            digest.update((self._folder / CONFIG).read_bytes())
        return f"open_clip-{digest.hexdigest()[:16]}"

    def load(self, dtype: torch.dtype) -> nn.Module:
        """Load the vision tower."""
        return self._load().visual.to(dtype).eval()

    def embed(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """Return the projected features (N, d)."""
        out = model(pixels)
        return out[0] if isinstance(out, tuple) else out

    def text_encoder(self) -> TextEncoder:
        """Load the whole model again for its text tower, in float32, and the tokenizer."""
        model = self._load().eval()
        if not self.has_text:
            raise SheetbendError(
                f"backbone {self.name!r}: the file holds no text tower; give head: prototypes, or a file of both towers"
            )
        try:
            with asked_if_it_answers():
                tokenizer = open_clip.get_tokenizer(self._model)
        except Exception as error:  # of transformers, of the hub, or of a damaged file
            raise SheetbendError(
                f"backbone {self.name!r}: its tokenizer cannot be had ({one_line(error)}); download it first"
            ) from None

        @torch.no_grad()
        def encode(texts: list[str]) -> Tensor:
            return model.encode_text(tokenizer(texts))

        return encode

    def checkpoint_activations(self, module: nn.Module) -> None:
        """Let the tower compute its activations again in the backward pass."""
        if not hasattr(module, "set_grad_checkpointing"):
            raise SheetbendError(f"gradient_checkpointing is true, but {type(module).__name__} has none; leave it out")
        module.set_grad_checkpointing(True)

    def _load(self) -> nn.Module:
        """Return the whole model in float32."""
        path = self._weights
        with _quiet(), asked_if_it_answers():  # some text towers have their settings on the hub
            # OpenAI's weights under a name without quickgelu: the tag knows better.
            model = open_clip.create_model(
                self._model,
                load_weights=False,
                pretrained_text=False,
                force_quick_gelu=bool(self._tag.get("quick_gelu")),
            )
            if self._file is not None:
                self._fill(model, path)
                return model
            try:
                open_clip.load_checkpoint(model, str(path), strict=True, weights_only=True)
            except Exception as error:  # of torch, of safetensors, or of a pickle that holds more than tensors
                raise SheetbendError(
                    f"backbone {self.name!r}: {path} does not fit the model ({one_line(error)}); download it again"
                ) from None
        return model

    def _fill(self, model: nn.Module, path: Path) -> None:
        """Load the user's own file, which may hold more around the model, or the vision tower alone."""
        state = read_safetensors(path) if path.suffix == ".safetensors" else _state_dict(read_pickle(path))
        wrapper = next((key[: key.index("visual.")] for key in state if "visual." in key), None)
        if wrapper is None:
            state = {f"visual.{key}": value for key, value in state.items()}
        state = {key.removeprefix(wrapper or ""): value for key, value in state.items()}
        try:
            missing = model.load_state_dict(state, strict=False).missing_keys
        except (RuntimeError, TypeError) as error:
            raise SheetbendError(
                f"backbone {self.name!r}: {path.name} is of another model ({one_line(error)}); name the model it is of"
            ) from None
        lacking = [key for key in missing if key.startswith("visual.")]
        foreign = [key for key in state if key.startswith("visual.") and key not in model.state_dict()]
        if lacking or foreign:
            what = f"has no {lacking[0]}" if lacking else f"has {foreign[0]}, which the model has not"
            raise SheetbendError(f"backbone {self.name!r}: {path.name} {what}; name the model it is of")
        self.has_text = not [key for key in missing if key not in ("logit_scale", "logit_bias")]


def open_clip_files(names: Sequence[str]) -> list[str]:
    """Return the weights of an open_clip model, and its settings and tokenizer where they are not the package's.

    Several names are asked for at once when it is read, and all that a repository has of these must be here, else it
    does not count as whole where the hub does not answer.
    """
    weights = next((found for form in _WEIGHTS if (found := [name for name in names if name in form])), [])
    beside = [name for name in names if "/" not in name and name.endswith(BESIDE_WEIGHTS)]
    return sorted({*weights, *beside}) if weights else []


def _parts(name: str) -> tuple[str, str | None, str, str]:
    """Return ``name`` without its prefix; the repository that it is, if any; and what it is else: model and weights."""
    given = name.removeprefix(OPEN_CLIP)
    model, _, weights = given.partition("/")
    return given, given.removeprefix(HUB) if given.startswith(HUB) else None, model, weights


def _published(tag: dict[str, Any]) -> tuple[str, str]:
    """Return the repository of a pretrained tag, and the file of weights where the tag names it."""
    owner, model, *file = tag["hf_hub"].strip("/").split("/")
    return f"{owner}/{model}", "/".join(file)


def _state_dict(content: dict[str, Any]) -> dict[str, Tensor]:
    """Return the state dict in what training scripts save."""
    inner = content.get("state_dict", content)
    return {key: value for key, value in inner.items() if isinstance(value, Tensor)}


def _preprocess(config: dict[str, Any]) -> dict[str, Any]:
    """Return mean, deviation, interpolation and resize mode; open_clip's defaults where ``config`` has none."""
    default = PreprocessCfg()
    return {key: config.get(key, getattr(default, key)) for key in ("mean", "std", "interpolation", "resize_mode")}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip from saying on the root logger that a model has no weights before it gets them."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
