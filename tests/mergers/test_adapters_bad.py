"""What is no adapter, or cannot be merged, is refused in one line that names it."""

import io
import json
import math
import os
import re
import struct
import tarfile
import zipfile

import pytest
import torch
from builders import lora_tensors, write_peft_folder
from safetensors.torch import save_file
from torch import nn

from mergers import SheetbendError, load_adapter
from mergers.adapters.patterns import Patterns
from mergers.adapters.pickled import reason_to_refuse

PREFIX = "base_model.model."
A = f"{PREFIX}q.lora_A.weight"
B = f"{PREFIX}q.lora_B.weight"


def refusal(path, **options):
    with pytest.raises(SheetbendError) as caught:
        load_adapter(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, ["use_dora", "DoRA"]),
        ({"peft_type": "IA3"}, ["peft_type is 'IA3'", "LORA"]),
        ({"peft_type": None}, ["peft_type is None"]),
        ({"bias": "all"}, ["bias is 'all'"]),
        ({"lora_bias": True}, ["lora_bias is True"]),
        ({"trainable_token_indices": [1]}, ["trainable_token_indices is [1]"]),
        ({"target_parameters": ["experts.w"]}, ["target_parameters is ['experts.w']"]),
        ({"alora_invocation_tokens": [1, 2]}, ["alora_invocation_tokens", "some tokens"]),
        ({"arrow_config": {"top_k": 3}}, ["arrow_config", "routes"]),
        ({"kasa_config": {"beta": 1}}, ["kasa_config"]),
        ({"monteclora_config": {"num_samples": 8}}, ["monteclora_config"]),
        ({"use_bdlora": {"nblocks": 2}}, ["use_bdlora"]),
        ({"use_qalora": True}, ["use_qalora"]),
        ({"layer_replication": [[0, 2]]}, ["layer_replication"]),
        ({"megatron_config": {"x": 1}}, ["megatron_config"]),
        ({"init_lora_weights": "pissa_niter_4"}, ["pissa_niter_4", "base weights"]),
        ({"init_lora_weights": "corda"}, ["corda", "path_initial_model_for_weight_conversion"]),
        ({"use_new_idea": {"strength": 2}}, ["use_new_idea is {'strength': 2}", "does not know"]),
        ({"r": 3}, ["module q", "(2, 3)", "rank 3"]),
        ({"r": 0}, ["rank of q is 0", "positive"]),
        ({"r": -2}, ["rank of q is -2"]),
        ({"r": 2.5}, ["rank of q is 2.5"]),
        ({"r": "2"}, ["r or rank_pattern", "no number"]),
        ({"r": True}, ["r or rank_pattern", "no number"]),
        ({"lora_alpha": math.nan}, ["lora_alpha or alpha_pattern", "no number"]),
        ({"lora_alpha": 10**400}, ["lora_alpha or alpha_pattern", "no number"]),
        ({"rank_pattern": ["q"]}, ["r or rank_pattern"]),
        ({"alpha_pattern": {"q(": 4}}, ["lora_alpha or alpha_pattern"]),
        ({"use_rslora": "yes"}, ["use_rslora is 'yes'", "true or false"]),
        ({"modules_to_save": "head"}, ["modules_to_save is 'head'", "list"]),
        ({"target_modules": [["q"]]}, ["target_modules is [['q']]"]),
        ({"base_model_name_or_path": 5}, ["base_model_name_or_path is 5"]),
    ],
)
def test_configs_that_are_not_plain_lora(config, words, tmp_path):
    message = refusal(write_peft_folder(tmp_path / "svhn", lora_tensors(), **config))
    for word in (f"adapter {tmp_path / 'svhn'}", *words):
        assert word in message


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({f"{PREFIX}head.weight": torch.ones(2, 2)}, ["head.weight' (2, 2)", "modules_to_save"]),
        ({f"{PREFIX}q.bias": torch.ones(2)}, ["q.bias' (2,)", "is a bias"]),
        ({f"{PREFIX}q.lora_B.bias": torch.ones(2)}, ["lora_B.bias", "lora_bias=False"]),
        ({f"{PREFIX}q.lora_magnitude_vector": torch.ones(2)}, ["lora_magnitude_vector", "DoRA"]),
        ({f"{PREFIX}e.token_adapter.trainable_tokens_delta": torch.ones(1, 2)}, ["trainable_token_indices"]),
        ({f"{PREFIX}e.base_layer.weight": torch.ones(5, 2)}, ["e.base_layer.weight' (5, 2)", "save_embedding_layers"]),
        (
            {f"{PREFIX}a.base_layer.out_proj.lora_{factor}.weight": torch.ones(2, 2) for factor in "AB"},
            ["MultiheadAttention a", "out_proj alone"],
        ),
        ({f"{PREFIX}prompt_embeddings": torch.ones(2, 2)}, ["prompt_embeddings", "no LoRA"]),
        ({f"{PREFIX}e.lora_embedding_A": torch.ones(2, 5)}, ["module e has no lora_embedding_B"]),
        ({f"{PREFIX}v.lora_A.weight": torch.ones(2, 3)}, ["module v has no lora_B"]),
        ({A: torch.ones(2, 3, 1, 1)}, ["q", "(2, 3, 1, 1)", "no factors of one weight"]),
        ({A: torch.ones(2)}, ["no factors of one weight"]),
        (
            {f"{PREFIX}c.lora_A.weight": torch.ones(2, 3, 3, 3), f"{PREFIX}c.lora_B.weight": torch.ones(4, 1, 1, 1)},
            ["module c", "grouped"],
        ),
        ({A: torch.tensor([[1.0, 2.0, math.nan]] * 2)}, ["q.lora_A holds NaN"]),
        ({B: torch.full((4, 2), math.inf)}, ["q.lora_B holds NaN or infinity"]),
        ({A: torch.ones(2, 3, dtype=torch.int64)}, ["torch.int64"]),
        ({A: torch.ones(2, 3).to(torch.float8_e4m3fn)}, ["q.lora_A is torch.float8_e4m3fn", "bfloat16"]),
        ({A: torch.ones(2, 0)}, ["(2, 0)", "empty"]),
        ({"q.lora_A.weight": torch.ones(2, 3)}, ["q.lora_A.weight stands twice"]),
        ({f"{PREFIX}../../etc/q.lora_A.weight": torch.ones(2, 3)}, ["'../../etc/q'", "no name of a module"]),
        ({f"{PREFIX}q\n.lora_A.weight": torch.ones(2, 3)}, [r"'q\n'"]),
        ({f"{PREFIX}a..q.lora_A.weight": torch.ones(2, 3)}, ["'a..q'"]),
    ],
)
def test_weights_that_are_not_plain_lora(tensors, words, tmp_path):
    message = refusal(write_peft_folder(tmp_path / "svhn", {**lora_tensors(), **tensors}))
    for word in words:
        assert word in message


def test_known_fields_that_change_nothing_are_accepted(tmp_path):
    fields = {
        "eva_config": {"rho": 2.0},
        "velora_config": {"num_groups": 4},
        "megatron_core": "megatron.core",
        "qalora_group_size": 16,
        "lora_dropout": 0.1,
        "init_lora_weights": "eva",
        "a_field_of_the_future": None,
        "another": [],
    }
    assert load_adapter(write_peft_folder(tmp_path / "x", lora_tensors(), **fields))["q"].scale == 2.0


def test_an_alpha_of_zero_is_a_scale_of_zero(tmp_path):
    assert not load_adapter(write_peft_folder(tmp_path / "x", lora_tensors(), lora_alpha=0))["q"].dense().any()


def damaged(path, **content):
    """A good folder, with some of its files overwritten."""
    write_peft_folder(path, lora_tensors())
    for file, text in content.items():
        name = {"config": "adapter_config.json", "weights": "adapter_model.safetensors"}[file]
        (path / name).write_bytes(text)
    return path


def safetensors_of(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"config": b"{"}, ["adapter_config.json is not JSON"]),
        ({"config": b"\xff\xfe"}, ["adapter_config.json is not JSON"]),
        ({"config": b"[" * 100_000}, ["adapter_config.json is not JSON"]),
        ({"config": b"[]"}, ["adapter_config.json holds no JSON object"]),
        ({"config": b'"LORA"'}, ["adapter_config.json holds no JSON object"]),
        ({"weights": b"junk"}, ["no safetensors file"]),
        ({"weights": b""}, ["no safetensors file"]),
        ({"weights": struct.pack("<Q", 2**60) + b"{}"}, ["no safetensors file"]),
        ({"weights": safetensors_of(b"{" * 50_000)}, ["no safetensors file"]),
        (
            {
                "weights": safetensors_of(
                    {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}, b"1234"
                )
            },
            ["no safetensors file", "overflow"],
        ),
        (
            {
                "weights": safetensors_of(
                    {"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}
                )
            },
            ["no safetensors file"],
        ),
        ({"weights": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"}, ["git lfs pull"]),
    ],
)
def test_damaged_files(content, words, tmp_path):
    message = refusal(damaged(tmp_path / "svhn", **content))
    for word in (str(tmp_path / "svhn"), *words):
        assert word in message


def test_a_truncated_file(tmp_path):
    path = damaged(tmp_path / "svhn")
    file = path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    assert "adapter_model.safetensors is no safetensors file" in refusal(path)


def test_folders_without_an_adapter(tmp_path):
    assert "does not exist" in refusal(tmp_path / "svhn")
    (tmp_path / "svhn").mkdir()
    assert "has no adapter_config.json" in refusal(tmp_path / "svhn")
    damaged(tmp_path / "svhn")
    (tmp_path / "svhn" / "adapter_model.safetensors").unlink()
    assert "has no adapter_model.safetensors" in refusal(tmp_path / "svhn")
    write_peft_folder(tmp_path / "empty", {})
    assert "no LoRA tensor" in refusal(tmp_path / "empty")
    assert "give the folder" in refusal(tmp_path / "svhn" / "adapter_config.json")
    assert "cannot be looked at" in refusal("a" * 5000)
    assert "cannot be looked at" in refusal("a\0b")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_where_a_file_should_be(name, tmp_path):
    path = damaged(tmp_path / "svhn")
    (path / name).unlink()
    (path / name).mkdir()
    assert f"{name} is a folder where a file should be" in refusal(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "."])
def test_no_permission_to_read(name, tmp_path):
    path = damaged(tmp_path / "svhn")
    (path / name).chmod(0)
    try:
        assert "chmod" in refusal(path)
    finally:
        (path / name).chmod(0o755)


def test_no_permission_as_the_system_says_it(tmp_path, monkeypatch):
    """Like the test above, for those who run as root."""
    path = damaged(tmp_path / "svhn")

    def forbidden(*args, **options):
        raise PermissionError(13, "Permission denied")

    def unseen(*args, **options):  # as safetensors puts it
        raise FileNotFoundError(2, "No such file or directory")

    for failure in (forbidden, unseen):
        with monkeypatch.context() as patch:
            patch.setattr("mergers.adapters.files.safe_open", failure)
            assert "adapter_model.safetensors may not be read" in refusal(path)
    with monkeypatch.context() as patch:
        patch.setattr("mergers.adapters.files.Path.read_text", forbidden)
        assert "adapter_config.json may not be read" in refusal(path)


def test_pickles_are_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    path = write_peft_folder(tmp_path / "svhn", {})
    (path / "adapter_model.safetensors").unlink()
    weights = path / "adapter_model.bin"
    for content in (Bomb(), {A: Bomb()}, nn.Linear(2, 2), [torch.ones(2)], {A: "text"}, {1: torch.ones(2)}):
        torch.save(content, weights)
        assert "adapter_model.bin" in refusal(path) or "no tensor" in refusal(path)
    for content in (b"", b"junk", b"\x80\x02."):
        weights.write_bytes(content)
        assert "holds more than tensors, or is damaged" in refusal(path)
    assert not (tmp_path / "ran").exists()


def test_the_same_weights_pickled(tmp_path):
    path = write_peft_folder(tmp_path / "svhn", lora_tensors())
    expected = load_adapter(path).content_hash()
    (path / "adapter_model.safetensors").unlink()
    torch.save(lora_tensors(), path / "adapter_model.bin")
    assert load_adapter(path).content_hash() == expected
    torch.save(lora_tensors(), path / "adapter_model.bin", _use_new_zipfile_serialization=False)
    assert load_adapter(path).content_hash() == expected


@pytest.mark.filterwarnings("ignore:Adapter 'default'. 1 LoRA tensor")  # PEFT takes the bias of LoRA for a lost one
def test_what_peft_itself_saves_beyond_lora_is_refused(tmp_path):
    peft = pytest.importorskip("peft")

    def saved(name, base, **config):
        peft.get_peft_model(base, peft.LoraConfig(r=2, **config)).save_pretrained(tmp_path / name)
        return refusal(tmp_path / name)

    def base():
        return nn.ModuleDict({"q": nn.Linear(4, 4), "e": nn.Embedding(5, 4), "m": nn.MultiheadAttention(4, 2)})

    assert "DoRA" in saved("dora", base(), target_modules=["q"], use_dora=True)
    assert "bias is 'lora_only'" in saved("bias", base(), target_modules=["q"], bias="lora_only")
    assert "lora_bias" in saved("lora_bias", base(), target_modules=["q"], lora_bias=True)
    tokens = {"e": [0, 2]}
    assert "trainable_token_indices" in saved("tokens", base(), target_modules=["q"], trainable_token_indices=tokens)
    assert "target_parameters" in saved("parameters", base(), target_modules=[], target_parameters=["q.weight"])
    assert "m is a MultiheadAttention with LoRA on its out_proj" in saved(
        "attention", base(), target_modules=["m"], init_lora_weights=False
    )
    assert "pissa" in saved("pissa", base(), target_modules=["q"], init_lora_weights="pissa")
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.warns(UserWarning, match="groups"):
        assert "grouped" in saved("grouped", grouped, target_modules=["0"])


def test_any_damage_is_one_line(tmp_path):
    """Bytes changed, cut out or put in at random: read as another adapter, or refused; never another exception."""
    folder = write_peft_folder(tmp_path / "svhn", lora_tensors(), target_modules=["q"], rank_pattern={"v": 3})
    published = {f"base_model.model.q.lora_{factor}.default.weight": torch.ones(2, 2) for factor in "AB"}
    torch.save(published, tmp_path / "svhn.pt")
    generator = torch.Generator().manual_seed(0)

    def number(below):
        return int(torch.randint(below, (), generator=generator))

    refused = 0
    for path in (folder / "adapter_config.json", folder / "adapter_model.safetensors", tmp_path / "svhn.pt"):
        good = path.read_bytes()
        for _ in range(80):
            bad = bytearray(good)
            start = number(len(bad))
            bad[start : start + number(4)] = bytes(number(256) for _ in range(number(4)))
            path.write_bytes(bad)
            try:
                load_adapter(path if path.suffix == ".pt" else folder)
            except SheetbendError as error:
                refused += 1
                assert "\n" not in str(error)
        path.write_bytes(good)
    assert refused > 80


def test_heads_that_do_not_fit(tmp_path):
    path = write_peft_folder(tmp_path / "svhn", lora_tensors())
    torch.save({"mnli": torch.ones(3, 2), "snli": torch.ones(3, 2)}, path / "heads.pt")
    assert "holds heads of mnli, snli, none of 'svhn'" in refusal(path)
    torch.save({"svhn": {"weight": torch.ones(3, 2)}}, path / "heads.pt")
    assert "heads.pt is no map" in refusal(path)
    (path / "heads.pt").unlink()
    save_file({"class_vectors": torch.full((2, 2), math.nan)}, path / "head.safetensors")
    assert "head class_vectors holds NaN" in refusal(path)


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a|ab)*c", "a*a*a*a*a*a*a*a*b", "(a|a)" * 40 + "b", "(" * 5000])
def test_patterns_that_take_for_ever_are_refused(tmp_path, field, pattern):
    folder = write_peft_folder(tmp_path / "svhn", lora_tensors("a" * 60), **{field: {pattern: 2}})
    with pytest.raises(SheetbendError, match=f"r or {field}|lora_alpha or {field}"):
        load_adapter(folder)


def test_patterns_are_tried_as_peft_does():
    """Names, ends of names, anchored names and expressions; the first in order counts."""
    modules = ["layers.0.q", "layers.1.q", "layers.10.q", "layers.1.v", "aq", "q"]
    maps = [
        {"q": 1, "layers.1.q": 2},
        {"layers.1.q": 2, "q": 1},
        {r"^layers\.1\.q": 2, "^q": 3, "v": 4},
        {r"layers\.[0-9]\..*": 1, "q": 2},
        {"q": 2, r"layers\.(0|1)\.(q|v)": 1},
        {"layers.1.[qv]": 1, "layers..0.q": 2},
        {"": 5},
    ]
    for patterns in maps:
        known = Patterns(patterns)
        known.require_cheap(len(modules), 11)
        for module in modules:
            tried = (v for p, v in patterns.items() if re.match(rf"(.*\.)?({p})$", module))
            assert known.value(module, 0) == next(tried, 0), (patterns, module)


def test_many_patterns_cost_little(tmp_path):
    """A merge of mixed ranks names every module of a large model."""
    patterns = {rf"^layers\.{number}\.experts\.q_proj": 2 + number % 3 for number in range(20_000)}
    known = Patterns(patterns)
    known.require_cheap(20_000, 40)
    assert [known.value(f"layers.{number}.experts.q_proj", 0) for number in (0, 1, 19_999)] == [2, 3, 3]


def test_a_key_that_cannot_be_hashed_in_time_is_refused(tmp_path):
    """A pickle of some hundred bytes that keeps torch's own unpickler busy for ever, and one that would fill memory."""
    folder = write_peft_folder(tmp_path / "svhn", lora_tensors())
    (folder / "adapter_model.safetensors").unlink()
    twice = b"".join(b"q%c" % n + b"h%c" % n + b"\x86" for n in range(60))
    (folder / "adapter_model.bin").write_bytes(b"\x80\x02})" + twice + b"Ns.")
    with pytest.raises(SheetbendError, match=r"adapter_model.bin is not read, since it holds tuples of tuples"):
        load_adapter(folder)
    with zipfile.ZipFile(folder / "adapter_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}." + bytes(10**6))
        archive.writestr("archive/version", b"3")
    with pytest.raises(SheetbendError, match="it unfolds to more than it is"):
        load_adapter(folder)


def test_a_file_is_looked_at_as_torch_reads_it(tmp_path):
    """Whatever other readers of archives would see in it."""
    bomb = b"\x80\x02})" + b"".join(b"q%c" % n + b"h%c" % n + b"\x86" for n in range(60)) + b"Ns."
    archive, tar = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as parts:
        parts.writestr("archive/data.pkl", b"\x80\x02}.")
        parts.writestr("archive/version", b"3")
    with zipfile.ZipFile(tmp_path / "upper", "w") as parts:
        parts.writestr("archive/DATA.PKL", bomb)
        parts.writestr("archive/version", b"3")
    with tarfile.open(fileobj=tar, mode="w") as parts:
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(bomb)
            parts.addfile(entry, io.BytesIO(bomb))
    legacy = io.BytesIO()
    torch.save({}, legacy, _use_new_zipfile_serialization=False)
    begun = legacy.getvalue()[: legacy.getvalue().index(b"}q") - 2]  # the three pickles before the map
    (tmp_path / "appended").write_bytes(begun + bomb + archive.getvalue())
    (tmp_path / "broken").write_bytes(begun + bomb[:-1] + b"\xff")
    (tmp_path / "tar").write_bytes(tar.getvalue())
    for name in ("upper", "appended", "broken", "tar"):
        assert reason_to_refuse(tmp_path / name), name
    assert "without end" in reason_to_refuse(tmp_path / "upper")
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({"a": torch.ones(2)}, tmp_path / "fine", **options)
        assert reason_to_refuse(tmp_path / "fine") == ""
