"""The difference of two full checkpoints, sharded or not."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mergers import Adapter, DenseUpdate, LowRankUpdate, Merger, SheetbendError, save_adapter
from mergers.adapters import load_adapter, load_difference


class Model(nn.Module):
    """Parameters of every number of dimensions, a bare one, and buffers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layers = nn.ModuleList(nn.ModuleDict({"q": nn.Linear(4, 5), "norm": nn.LayerNorm(4)}) for _ in range(2))
        self.conv = nn.Conv2d(3, 4, (2, 3))
        self.class_embedding = nn.Parameter(torch.randn(4))
        self.positions = nn.Parameter(torch.randn(1, 3, 4))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("ids", torch.arange(3))
        self.register_buffer("mean", torch.zeros(2))


def model(seed, dtype=torch.float32):
    torch.manual_seed(seed)
    return Model().to(dtype)


def save_single(path, state):
    path.mkdir(parents=True)
    save_file({key: tensor.clone() for key, tensor in state.items()}, path / "model.safetensors")
    return path


def save_sharded(path, state, shards=3):
    path.mkdir(parents=True)
    places = {}
    for index in range(shards):
        name = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        keys = list(state)[index::shards]
        save_file({key: state[key].clone() for key in keys}, path / name)
        places.update(dict.fromkeys(keys, name))
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


@pytest.fixture
def pair(tmp_path):
    """A fine-tuned checkpoint in shards, and its base in one file."""
    return save_sharded(tmp_path / "rte", model(1).state_dict()), save_single(tmp_path / "base", model(0).state_dict())


def test_the_difference_of_every_parameter(pair):
    adapter = load_difference(*pair)
    assert adapter.name == "rte"
    assert adapter.base_model == str(pair[1])
    before, after = model(0).state_dict(), model(1).state_dict()
    names = {name: name.removesuffix(".weight") for name in before if name != "ids"}
    assert set(adapter) == set(names.values())
    for parameter, module in names.items():
        update = adapter[module]
        expected = (after[parameter] - before[parameter]).reshape(update.shape)
        assert torch.equal(update.dense(), expected)
        assert torch.equal(update.load().delta, expected)
        assert torch.equal(torch.cat(list(update.blocks(2))), expected)
        assert torch.equal(update.sample(2), expected[::2, ::2] if expected.ndim > 1 else expected[::2])
        torch.testing.assert_close(torch.linalg.multi_dot(update.factors()), expected.reshape(len(expected), -1))
        assert torch.equal(update.scaled(2.0).scaled(0.5).dense(), expected)
    assert adapter["conv"].shape == (4, 18)
    assert adapter["positions"].shape == (1, 12)
    assert adapter["logit_scale"].shape == (1,)
    assert adapter["layers.1.q"].rank == 4
    assert adapter.metadata["kinds"]["conv"] == {"conv": [2, 3]}
    assert adapter.metadata["kinds"]["layers.0.q"] == "parameter"


def test_applied_to_the_base_it_is_the_finetuned_model(pair):
    merged = Merger().merge([load_difference(*pair)])
    applied = merged.apply(model(0)).state_dict()
    for name, expected in model(1).state_dict().items():
        torch.testing.assert_close(applied[name], expected, rtol=1e-5, atol=1e-6)


def test_nothing_is_read_before_it_is_used(pair, monkeypatch):
    read = []
    monkeypatch.setattr("mergers.adapters.differences.Stored.read", lambda self, rows=None: read.append(self.key))
    adapter = load_difference(pair[0], pair[1], modules=["q"])
    assert not read
    with pytest.raises(AttributeError):
        adapter["layers.0.q"].dense()
    assert set(read) == {"layers.0.q.weight"}


def test_merging_differences_of_half_precision(tmp_path):
    base = save_single(tmp_path / "base", model(0, torch.bfloat16).state_dict())
    tasks = [save_single(tmp_path / f"task_{seed}", model(seed, torch.bfloat16).state_dict()) for seed in (1, 2)]
    adapters = [load_difference(task, base) for task in tasks]
    assert adapters[0].metadata["dtype"] == "bfloat16"
    merged = Merger("full", "ties").merge(adapters)
    assert isinstance(merged["conv"], DenseUpdate)
    before = model(0, torch.bfloat16).state_dict()
    after = [model(seed, torch.bfloat16).state_dict() for seed in (1, 2)]
    mean = Merger().merge(adapters)["layers.0.q"].dense()
    expected = sum(a["layers.0.q.weight"].float() - before["layers.0.q.weight"].float() for a in after) / 2
    torch.testing.assert_close(mean, expected)


def test_some_modules_only(pair, tmp_path):
    finetuned, base = pair
    assert list(load_difference(finetuned, base, name="x", modules=["q"])) == ["layers.0.q", "layers.1.q"]
    assert set(load_difference(finetuned, base, modules=["1.q", "norm.bias", "class_embedding"])) == {
        "layers.1.q",
        "layers.0.norm.bias",
        "layers.1.norm.bias",
        "class_embedding",
    }
    with pytest.raises(SheetbendError, match="modules names 'qq'"):
        load_difference(finetuned, base, modules=["q", "qq"])
    with pytest.raises(SheetbendError, match="give a list"):
        load_difference(finetuned, base, modules="q")
    # What is not compared need not fit.
    state = {**model(1).state_dict(), "head.weight": torch.ones(2, 2), "embed.weight": torch.ones(9, 4)}
    other = save_single(tmp_path / "other", state)
    assert len(load_difference(other, base, modules=["q"])) == 2


def test_single_files_are_checkpoints_too(pair):
    file = pair[1] / "model.safetensors"
    adapter = load_difference(file, pair[1])
    assert adapter.name == "model"
    assert not any(update.dense().any() for update in adapter.values())


def test_a_difference_is_no_lora_unless_its_weights_are_linear(pair, tmp_path):
    def factored(adapter):
        factors = {module: update.factors() for module, update in adapter.items()}
        updates = {module: LowRankUpdate(A=A, B=B) for module, (B, A) in factors.items()}
        return Adapter(updates, "low", metadata=adapter.metadata)

    adapter = load_difference(*pair, modules=["q"])
    with pytest.raises(SheetbendError, match=r"layers\.0\.q is the difference.*linear=True"):
        save_adapter(factored(adapter), tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
    linear = load_difference(*pair, modules=["q"], linear=True)
    save_adapter(factored(linear), tmp_path / "lora")
    for module, update in load_adapter(tmp_path / "lora").items():
        torch.testing.assert_close(update.dense(), adapter[module].dense())
    with pytest.raises(SheetbendError, match="name those that are linear"):
        load_difference(*pair, linear=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("conv.weight"), ["rte has no conv.weight, but", "base has", "modules=[...]"]),
        (lambda state: state.update({"head.weight": torch.ones(2, 2)}), ["base has no head.weight"]),
        (
            lambda state: state.update({"embed.weight": torch.ones(9, 4), "mean": torch.ones(3)}),
            ["embed.weight (9, 4) for (7, 4)", "mean (3,) for (2,)"],
        ),
        (lambda state: state.update(ids=torch.arange(3) + 1), ["other ids than", "integers"]),
        (lambda state: state.update(mean=torch.zeros(2, dtype=torch.int64)), ["mean I64/F32"]),
        (
            lambda state: state.update({"layers.0.q.weight": torch.ones(5, 4).to(torch.float8_e4m3fn)}),
            ["layers.0.q.weight F8_E4M3/F32", "bfloat16"],
        ),
    ],
)
def test_checkpoints_that_do_not_fit(change, words, pair, tmp_path):
    state = dict(model(1).state_dict())
    change(state)
    with pytest.raises(SheetbendError) as caught:
        load_difference(save_sharded(tmp_path / "new" / "rte", state), pair[1])
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_buffers_of_integers_that_one_side_lacks_are_left_out(pair, tmp_path):
    state = dict(model(1).state_dict())
    del state["ids"]
    assert "ids" not in load_difference(save_single(tmp_path / "new", state), pair[1])


def test_two_parameters_of_one_name_are_refused(tmp_path):
    state = {"a": torch.ones(2), "a.weight": torch.ones(2)}
    path = save_single(tmp_path / "odd", state)
    with pytest.raises(SheetbendError, match=r"has both a and a\.weight"):
        load_difference(path, path)


def test_nan_is_named_when_it_is_read(pair, tmp_path):
    state = dict(model(1).state_dict())
    state["layers.1.q.bias"] = torch.full((5,), float("nan"))
    adapter = load_difference(save_single(tmp_path / "new", state), pair[1], name="rte")
    with pytest.raises(SheetbendError, match=r"new: layers\.1\.q\.bias holds NaN"):
        Merger().merge([adapter])


def test_damaged_checkpoints(pair, tmp_path):
    finetuned, base = pair

    def refusal():
        with pytest.raises(SheetbendError) as caught:
            load_difference(finetuned, base)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    index = finetuned / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": {**good["weight_map"], "x": "../base/model.safetensors"}}))
    assert "'../base/model.safetensors'; it must be a .safetensors file beside it" in refusal()
    index.write_text(json.dumps({"weight_map": {**good["weight_map"], "x": "model-00001-of-00003.safetensors"}}))
    assert "has no tensor x, but its index says so" in refusal()
    index.write_text(json.dumps({"weight_map": ["a"]}))
    assert "has no weight_map" in refusal()
    index.write_text(json.dumps(good))
    shard = finetuned / "model-00002-of-00003.safetensors"
    shard.write_bytes(struct.pack("<Q", 2**50))
    assert "model-00002-of-00003.safetensors is no safetensors file" in refusal()
    shard.unlink()
    assert "model-00002-of-00003.safetensors does not exist" in refusal()


def test_what_is_no_checkpoint(pair, tmp_path):
    with pytest.raises(SheetbendError, match="does not exist"):
        load_difference(tmp_path / "none", pair[1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SheetbendError, match=r"has neither model\.safetensors nor"):
        load_difference(pair[0], tmp_path / "empty")
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    with pytest.raises(SheetbendError, match="is an adapter"):
        load_difference(tmp_path / "empty", pair[1])
    with pytest.raises(SheetbendError, match=r"has no adapter_config\.json"):
        load_adapter(pair[0])


def test_a_checkpoint_of_the_hub(pair, tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    repository = tmp_path / "hub" / "models--lab--rte"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("3" * 40)
    save_sharded(repository / "snapshots" / ("3" * 40), model(1).state_dict())
    adapter = load_difference("lab/rte", pair[1], modules=["q"])
    assert adapter.name == "rte"
    assert adapter.content_hash() == load_difference(*pair, modules=["q"]).content_hash()
