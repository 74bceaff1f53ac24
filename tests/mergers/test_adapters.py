"""Adapters are read and written as PEFT does; PEFT itself is the judge."""

import json
import math

import pytest
import torch
from builders import lora_tensors, random_adapters, write_peft_folder
from torch import nn

from mergers import (
    Dare,
    LowRankUpdate,
    Merger,
    SheetbendError,
    Star,
    Ties,
    adapter_from_state_dict,
    load_adapter,
    save_adapter,
)

peft = pytest.importorskip("peft")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Linear(6, 6)
        self.v = nn.Linear(6, 6)

    def forward(self, x):
        return torch.tanh(self.q(x)) * self.v(x)


class Tiny(nn.Module):
    """Names on purpose: `tower.blocks.1.q` also ends like `blocks.1.q`."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.tower = nn.ModuleDict({"blocks": nn.ModuleList([Block(), Block()])})

    def forward(self, x):
        for block in (*self.blocks, *self.tower["blocks"]):
            x = x + block(x)
        return x


def tiny(seed=0):
    torch.manual_seed(seed)
    return Tiny()


def peft_model(seed=0, base=None, **config):
    model = peft.get_peft_model(base or tiny(), peft.LoraConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) / 4
    return model


def peft_deltas(model):
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


CONFIGS = [
    {"r": 2, "lora_alpha": 8, "target_modules": ["q", "v"]},
    {"r": 4, "lora_alpha": 8, "target_modules": ["q", "v"], "use_rslora": True},
    {
        "r": 2,
        "lora_alpha": 6,
        "target_modules": ["q", "v"],
        "rank_pattern": {"blocks.0.q": 3, "^blocks.1.v": 1, r"blocks\.\d.v": 4},
        "alpha_pattern": {"tower.blocks.0.q": 5, "q": 7},
    },
    {"r": 2, "lora_alpha": 2, "target_modules": r"tower\.blocks\.\d\.v"},
    {"r": 2, "lora_alpha": 2, "target_modules": ["q"], "layers_to_transform": [1], "layers_pattern": "blocks"},
]


@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "rslora", "patterns", "regex", "layers"])
def test_loaded_delta_is_the_one_peft_computes(config, tmp_path):
    peft_model(**config).save_pretrained(tmp_path / "mnist")
    adapter = load_adapter(tmp_path / "mnist")
    # Not those of the model in memory: PEFT sorts patterns as it saves them, and the first that matches counts.
    deltas = peft_deltas(peft.PeftModel.from_pretrained(tiny(), tmp_path / "mnist"))
    assert adapter.name == "mnist"
    assert adapter.keys() == deltas.keys()
    for module, delta in deltas.items():
        torch.testing.assert_close(adapter[module].dense(), delta)


@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "rslora", "patterns", "regex", "layers"])
@pytest.mark.parametrize(
    "merger",
    [Merger(), Merger("full", "mean", [Star(60)]), Merger("knots", Ties(density=0.4), [Dare(0.3)])],
    ids=["mean", "star", "knots-ties"],
)
def test_saved_merge_computes_the_same_in_peft(config, merger, tmp_path):
    for seed in range(2):
        peft_model(seed, **config).save_pretrained(tmp_path / f"task_{seed}")
    merged = merger.merge([load_adapter(tmp_path / f"task_{seed}") for seed in range(2)])
    merged.save(tmp_path / "merged")
    loaded = peft.PeftModel.from_pretrained(tiny(), tmp_path / "merged").eval()
    deltas = peft_deltas(loaded)
    assert deltas.keys() == merged.keys()
    for module, update in merged.items():
        torch.testing.assert_close(deltas[module], update.dense())
    x = torch.randn(5, 6)
    applied = merged.apply(tiny())
    torch.testing.assert_close(loaded(x), applied(x), rtol=1e-4, atol=1e-5)
    again = load_adapter(tmp_path / "merged")
    assert all(update.scale == 1.0 for update in again.values())


def test_names_that_end_like_others_keep_their_own_rank(tmp_path):
    """Mixed ranks, and a selection by full name: one name is the end of another."""
    shapes = {"blocks.0.q": (6, 6), "tower.blocks.0.q": (6, 6), "blocks.1.q": (6, 6), "tower.blocks.1.q": (6, 6)}
    ranks = {"blocks.0.q": 1, "tower.blocks.0.q": 3, "blocks.1.q": 2, "tower.blocks.1.q": 2}
    [adapter] = random_adapters(1, shapes, ranks)
    save_adapter(adapter, tmp_path / "mixed")
    loaded = peft.PeftModel.from_pretrained(tiny(), tmp_path / "mixed")
    for module, delta in peft_deltas(loaded).items():
        torch.testing.assert_close(delta, adapter[module].dense())
    assert {module: update.rank for module, update in load_adapter(tmp_path / "mixed").items()} == ranks


def test_a_dot_in_a_name_is_a_dot(tmp_path):
    def base():
        return nn.ModuleDict({"axq": nn.Linear(6, 6), "a": nn.ModuleDict({"q": nn.Linear(6, 6), "v": nn.Linear(6, 6)})})

    [adapter] = random_adapters(1, dict.fromkeys(["a.q", "axq", "a.v"], (6, 6)), {"a.q": 3, "axq": 2, "a.v": 2})
    save_adapter(adapter, tmp_path / "dots")
    loaded = peft.PeftModel.from_pretrained(base(), tmp_path / "dots")
    for module, delta in peft_deltas(loaded).items():
        torch.testing.assert_close(delta, adapter[module].dense())


def test_an_update_of_rank_zero_is_saved(tmp_path):
    [adapter] = random_adapters(1, {"blocks.0.q": (6, 6)})
    zero = adapter["blocks.0.q"]
    adapter._updates["blocks.0.q"] = LowRankUpdate(A=zero.A[:0], B=zero.B[:, :0])
    save_adapter(adapter, tmp_path / "zero")
    assert not load_adapter(tmp_path / "zero")["blocks.0.q"].dense().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept_computed_in_float32_and_written_back(dtype, tmp_path):
    path = write_peft_folder(tmp_path / "half", lora_tensors(dtype=dtype), target_modules=["q"])
    adapter = load_adapter(path)
    assert adapter["q"].A.dtype == adapter["q"].B.dtype == dtype
    assert adapter["q"].dense().dtype == adapter["q"].factors()[0].dtype == torch.float32
    merged = Merger().merge([adapter])
    merged.save(tmp_path / "own")
    merged.save(tmp_path / "single", dtype=torch.float32)
    from safetensors.torch import load_file

    assert {t.dtype for t in load_file(tmp_path / "own" / "adapter_model.safetensors").values()} == {dtype}
    assert torch.equal(load_adapter(tmp_path / "single")["q"].dense(), merged["q"].dense())


def test_fan_in_fan_out_is_kept(tmp_path):
    """GPT-2's Conv1D stores its weight (in, out)."""
    from transformers.pytorch_utils import Conv1D

    def base():
        torch.manual_seed(0)
        return nn.ModuleDict({"c_attn": Conv1D(6, 4)})  # 4 features to 6

    model = peft_model(base=base(), r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    model.save_pretrained(tmp_path / "gpt")
    adapter = load_adapter(tmp_path / "gpt")
    assert adapter["c_attn"].shape == (6, 4)
    expected = model.merge_and_unload()["c_attn"].weight
    merged = Merger().merge([adapter])
    torch.testing.assert_close(merged.apply(base())["c_attn"].weight, expected)
    merged.save(tmp_path / "merged")
    loaded = peft.PeftModel.from_pretrained(base(), tmp_path / "merged")
    torch.testing.assert_close(loaded.merge_and_unload()["c_attn"].weight, expected)


def test_from_a_live_peft_model():
    model = peft_model(r=2, lora_alpha=3, target_modules=["q", "v"])
    adapter = adapter_from_state_dict(
        peft.get_peft_model_state_dict(model), model.peft_config["default"].to_dict(), name="live"
    )
    for module, delta in peft_deltas(model).items():
        torch.testing.assert_close(adapter[module].dense(), delta)
    save_config = Merger().merge([adapter]).metadata["selection"]
    json.dumps(save_config)
    assert save_config["target_modules"] == ["q", "v"]


def test_content_hash_is_of_the_content(tmp_path):
    tensors = {**lora_tensors("q", seed=1), **lora_tensors("v", seed=2)}
    one = load_adapter(write_peft_folder(tmp_path / "one", tensors))
    backwards = dict(reversed(tensors.items()))
    renamed = load_adapter(write_peft_folder(tmp_path / "two", backwards, task_type="FEATURE_EXTRACTION"), "x")
    assert one.content_hash() == renamed.content_hash()
    assert len(one.content_hash()) == 64
    other_alpha = load_adapter(write_peft_folder(tmp_path / "three", tensors, lora_alpha=5))
    swapped = {**lora_tensors("q", seed=2), **lora_tensors("v", seed=1)}
    other_names = load_adapter(write_peft_folder(tmp_path / "four", swapped))
    assert len({one.content_hash(), other_alpha.content_hash(), other_names.content_hash()}) == 3


def test_scales_by_hand(tmp_path):
    cases = [({}, 2.0), ({"use_rslora": True}, 4 / math.sqrt(2)), ({"alpha_pattern": {"q": 1}}, 0.5)]
    for index, (config, scale) in enumerate(cases):
        path = write_peft_folder(tmp_path / str(index), lora_tensors(), **config)
        assert load_adapter(path)["q"].scale == pytest.approx(scale)


def test_a_save_never_takes_other_files_with_it(tmp_path):
    [adapter] = random_adapters(1)
    save_adapter(adapter, tmp_path / "merged")
    save_adapter(adapter, tmp_path / "merged")
    (tmp_path / "merged" / "thesis.tex").write_text("years")
    with pytest.raises(SheetbendError, match=r"merged also holds thesis\.tex"):
        save_adapter(adapter, tmp_path / "merged")
    assert (tmp_path / "merged" / "thesis.tex").read_text() == "years"
    with pytest.raises(SheetbendError, match="is a file"):
        save_adapter(adapter, tmp_path / "merged" / "thesis.tex")


def test_a_save_that_fails_leaves_the_old_folder(tmp_path, monkeypatch):
    [adapter] = random_adapters(1)
    save_adapter(adapter, tmp_path / "merged")
    before = load_adapter(tmp_path / "merged").content_hash()

    def fail(*args, **options):
        raise OSError("disk full")

    monkeypatch.setattr("mergers.adapters.write.write_safetensors", fail)
    [other] = random_adapters(1, seed=5)
    with pytest.raises(OSError, match="disk full"):
        save_adapter(other, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    assert (tmp_path / "merged" / "adapter_model.safetensors").stat().st_mode & 0o777 == 0o644
    assert load_adapter(tmp_path / "merged").content_hash() == before
