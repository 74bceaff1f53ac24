import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, CLIPVisionModelWithProjection

from lightning_modules import SequenceClassifier, TextGenerator
from lightning_modules.backbones import base_name, content_key, load_pretrained, load_tokenizer, locate, shipped_models
from lightning_modules.image_backbones import image_backbone
from mergers import SheetbendError


def test_a_folder_wins_then_shipped_names_then_hub_ids(tiny_clip):
    assert locate(tiny_clip) == tiny_clip
    assert Path(locate(shipped_models()[0])).is_dir()
    assert locate("openai/clip-vit-base-patch32") == "openai/clip-vit-base-patch32"


@pytest.mark.parametrize("name", ["no-such-model", "./runs/missing", "/nowhere/model", "a/b/c"])
def test_anything_else_is_refused_with_the_models_that_ship(name):
    with pytest.raises(SheetbendError, match=f"backbone '{name}'.*{shipped_models()[0]}"):
        locate(name)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(SheetbendError, match=r"config\.json"):
        locate(str(tmp_path))


def test_a_missing_hub_model_says_how_to_get_it():
    with pytest.raises(SheetbendError, match=r"HF_HUB_OFFLINE is set.*hf download someone/missing") as caught:
        load_pretrained(AutoConfig.from_pretrained, "someone/missing")
    assert "\n" not in str(caught.value)


def refused(load, *words):
    """Call what must say all of ``words`` in one line."""
    with pytest.raises(SheetbendError) as caught:
        load()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"hidden_size": 4}', "config.json has no model_type"),
        (b"{not json", "config.json is not JSON"),
        (b"\xff\xfe", "config.json is not JSON"),
        (b"[1]", "config.json holds no JSON object"),
        (b'{"model_type": "mystery"}', "model type `mystery`"),
        (b'{"model_type": "bert", "hidden_size": "many"}', "'hidden_size' expected int"),
    ],
)
def test_a_model_whose_settings_cannot_be_read_is_one_line(content, words, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    name = str(tmp_path)
    for load in (
        lambda: image_backbone(name),
        lambda: SequenceClassifier(name).max_length,
        lambda: TextGenerator(name).architecture,
        lambda: load_tokenizer(name),
    ):
        refused(load, f"backbone {name!r}: ", words)


def test_so_is_one_in_the_cache_of_the_hub(tmp_path, monkeypatch):
    commit = "1" * 40
    folder = tmp_path / "models--owner--model"
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refused(lambda: image_backbone("owner/model"), "backbone 'owner/model': its config.json has no model_type")


@pytest.mark.parametrize(
    ("file", "load"),
    [
        ("model.safetensors", lambda name: load_pretrained(CLIPVisionModelWithProjection.from_pretrained, name)),
        ("tokenizer.json", load_tokenizer),
    ],
)
def test_a_damaged_file_is_one_line(file, load, tiny_clip, tmp_path):
    name = str(shutil.copytree(tiny_clip, tmp_path / "copy"))
    Path(name, file).write_bytes(Path(name, file).read_bytes()[:1000])
    refused(lambda: load(name), f"backbone {name!r} could not be loaded: ", "give a folder with a whole model")


@pytest.mark.parametrize("hidden", [False, True])
def test_downloads_keep_the_bars_that_the_hub_shows(tiny_clip, hidden):
    """transformers hides its own bars, over weights on disk, and not those of downloads; all is as it was after."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    (disable_progress_bars if hidden else enable_progress_bars)()
    try:
        seen = load_pretrained(lambda source, **_: are_progress_bars_disabled(), tiny_clip)
        assert seen is hidden and are_progress_bars_disabled() is hidden
    finally:
        enable_progress_bars()


def test_adapters_never_carry_a_path_of_this_machine(tiny_clip):
    assert base_name(tiny_clip) == "test-clip"
    assert base_name("tiny-clip") == "tiny-clip"


def test_content_key_follows_every_file(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    keys = [content_key(str(tmp_path)), content_key(str(tmp_path))]
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    keys.append(content_key(str(tmp_path)))
    (tmp_path / "pytorch_model.bin").write_bytes(b"other weights")
    keys.append(content_key(str(tmp_path)))
    assert keys[0] == keys[1] and len(set(keys)) == 3


def test_content_key_of_a_hub_model_is_its_revision(tmp_path, monkeypatch):
    def cached(revision):
        return lambda *_: str(tmp_path / "snapshots" / revision / "config.json")

    keys = []
    for revision in ("aaa", "aaa", "bbb"):
        monkeypatch.setattr("lightning_modules.backbones.try_to_load_from_cache", cached(revision))
        keys.append(content_key("owner/model"))
    assert keys[0] == keys[1] != keys[2]
    # Unknown revisions are never taken for each other.
    monkeypatch.setattr("lightning_modules.backbones.try_to_load_from_cache", lambda *_: None)
    assert content_key("owner/model") != content_key("owner/model")


@pytest.mark.parametrize("kind", [image_backbone, SequenceClassifier, TextGenerator, load_tokenizer])
def test_code_that_comes_with_a_model_is_never_run(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers would ask
    marker = tmp_path / "ran"
    folder = tmp_path / "model"
    folder.mkdir()
    code = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"
    (folder / "theirs.py").write_text(f"{code}from transformers import PretrainedConfig as Config\n")
    places = {"AutoConfig": "theirs.Config", "AutoTokenizer": ["theirs.Tokenizer", None]}
    (folder / "config.json").write_text(json.dumps({"model_type": "theirs", "auto_map": places}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Theirs", "auto_map": places}))

    def load():
        made = kind(str(folder))
        if isinstance(made, SequenceClassifier | TextGenerator):
            made.build_backbone()

    refused(load, f"backbone {str(folder)!r}")
    assert not marker.exists()
