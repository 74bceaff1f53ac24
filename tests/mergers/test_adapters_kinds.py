"""Updates of embeddings, convolutions and Conv1D lie in their weights as PEFT lays them."""

import pytest
import torch
from torch import nn

from mergers import LowRankUpdate, Merger, SheetbendError, Ties, load_adapter, save_adapter
from mergers.adapters import adapter_from_state_dict
from mergers.adapters.kinds import lying_shape

peft = pytest.importorskip("peft")


class Everything(nn.Module):
    """One layer of every kind that PEFT adapts with LoRA, but for attention."""

    def __init__(self):
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.table = nn.Embedding(7, 4)
        self.linear = nn.Linear(4, 6)
        self.turned = Conv1D(5, 6)  # 6 features to 5
        self.line = nn.Conv1d(2, 3, 3)
        self.image = nn.Conv2d(2, 3, (3, 2), stride=2, padding=1)
        self.pixel = nn.Conv2d(2, 3, 1)
        self.volume = nn.Conv3d(2, 3, (1, 2, 2))
        self.head = nn.Sequential(nn.Linear(5, 2), nn.LayerNorm(2))

    def forward(self, tokens, pixels):
        text = self.head(self.turned(self.linear(self.table(tokens))))
        return text.sum() + sum(
            layer(part).sum()
            for layer, part in (
                (self.line, pixels[:, :, 0, 0]),
                (self.image, pixels[:, :, 0]),
                (self.pixel, pixels[:, :, 0]),
                (self.volume, pixels),
            )
        )


KINDS = {
    "table": "embedding",
    "linear": "linear",
    "turned": "linear",
    "line": {"conv": [3]},
    "image": {"conv": [3, 2]},
    "pixel": {"conv": [1, 1]},
    "volume": {"conv": [1, 2, 2]},
}


def everything(dtype=torch.float32):
    torch.manual_seed(0)
    return Everything().to(dtype)


def saved(path, seed, dtype=torch.float32, **config):
    """Save a PEFT model with random LoRA weights, and return it."""
    config = {"r": 2, "lora_alpha": 6, "target_modules": list(KINDS), "fan_in_fan_out": True, **config}
    model = peft.get_peft_model(everything(dtype), peft.LoraConfig(**config), autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = (torch.randn(parameter.shape, generator=generator) / 4).to(dtype)
    model.save_pretrained(path)
    return model


def peft_deltas(model):
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def applied_deltas(adapter):
    """What `apply` adds to each weight."""
    before, after = everything().state_dict(), Merger().merge([adapter]).apply(everything()).state_dict()
    return {module: after[f"{module}.weight"] - before[f"{module}.weight"] for module in adapter}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"image": 3, "table": 1}, "alpha_pattern": {"^volume": 5, ".*able": 7}},
        {"init_lora_weights": "gaussian"},
    ],
    ids=["plain", "rslora", "patterns", "gaussian"],
)
def test_every_kind_is_what_peft_computes(config, tmp_path):
    saved(tmp_path / "task", 0, **config)
    adapter = load_adapter(tmp_path / "task")
    assert adapter.metadata["kinds"] == KINDS
    expected = peft_deltas(peft.PeftModel.from_pretrained(everything(), tmp_path / "task"))
    assert adapter.keys() == expected.keys()
    for module, delta in applied_deltas(adapter).items():
        torch.testing.assert_close(delta, expected[module], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("merger", [Merger(), Merger("knots", Ties(density=0.5))], ids=["mean", "knots-ties"])
def test_a_merge_of_every_kind_goes_back_into_peft(merger, tmp_path):
    for seed in range(2):
        saved(tmp_path / f"task_{seed}", seed, r=2 + seed)
    merged = merger.merge([load_adapter(tmp_path / f"task_{seed}") for seed in range(2)])
    save_adapter(merged, tmp_path / "merged")
    loaded = peft.PeftModel.from_pretrained(everything(), tmp_path / "merged").eval()
    tokens, pixels = torch.tensor([0, 3, 6]), torch.randn(1, 2, 4, 5, 6)
    expected = merged.apply(everything())(tokens, pixels)
    assert not torch.allclose(expected, everything()(tokens, pixels), rtol=1e-3)
    torch.testing.assert_close(loaded(tokens, pixels), expected, rtol=1e-4, atol=1e-4)
    again = load_adapter(tmp_path / "merged")
    assert again.metadata["kinds"] == KINDS
    for module, update in merged.items():
        torch.testing.assert_close(again[module].dense(), update.dense())


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_of_every_kind(dtype, tmp_path):
    saved(tmp_path / "task", 0, dtype=dtype)
    adapter = load_adapter(tmp_path / "task")
    assert {update.A.dtype for update in adapter.values()} == {dtype}
    save_adapter(adapter, tmp_path / "again")
    assert load_adapter(tmp_path / "again").metadata["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_saved_modules_are_kept_for_their_task(tmp_path):
    """PEFT takes entries of modules_to_save as ends of names; all below such a module is saved."""
    model = saved(tmp_path / "mnist", 0, target_modules=["linear"], modules_to_save=["ead"])
    adapter = load_adapter(tmp_path / "mnist")
    assert list(adapter) == ["linear"]
    assert set(adapter.heads) == {"head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias"}
    for name, tensor in adapter.heads.items():
        torch.testing.assert_close(
            tensor, model.base_model.model.head.modules_to_save["default"].state_dict()[name[5:]]
        )
    live = adapter_from_state_dict(
        peft.get_peft_model_state_dict(model), model.peft_config["default"].to_dict(), name="live"
    )
    assert live.content_hash() == adapter.content_hash()
    assert live.heads.keys() == adapter.heads.keys()


def test_a_classifier_of_transformers_is_a_head(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=11, n_positions=6, num_labels=3)
    model = transformers.GPT2ForSequenceClassification(config)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    )
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            nn.init.normal_(parameter, std=0.1)
    wrapped.save_pretrained(tmp_path / "sst2")
    adapter = load_adapter(tmp_path / "sst2")
    assert list(adapter.heads) == ["score.weight"]
    assert adapter["transformer.h.0.attn.c_attn"].shape == (24, 8)
    fresh = transformers.GPT2ForSequenceClassification(config)
    fresh.load_state_dict(weights)
    applied = Merger().merge([adapter]).apply(fresh).state_dict()
    expected = wrapped.merge_and_unload().state_dict()
    for module in adapter:
        torch.testing.assert_close(applied[f"{module}.weight"], expected[f"{module}.weight"])


def test_embeddings_of_transformers_that_peft_saves_whole(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=6)
    wrapped = peft.get_peft_model(transformers.GPT2Model(config), peft.LoraConfig(r=2, target_modules=["wte", "wpe"]))
    wrapped.save_pretrained(tmp_path / "whole", save_embedding_layers=True)  # by default too, for `embed_tokens`
    with pytest.raises(SheetbendError, match=r"wte\.base_layer\.weight.*save_embedding_layers=False"):
        load_adapter(tmp_path / "whole")
    wrapped.save_pretrained(tmp_path / "lora", save_embedding_layers=False)
    adapter = load_adapter(tmp_path / "lora")
    assert adapter.metadata["kinds"] == {"wte": "embedding", "wpe": "embedding"}
    assert adapter["wte"].shape == (8, 11)


def test_a_selection_that_does_not_cover_the_weights_is_not_written_back(tmp_path):
    from builders import lora_tensors, write_peft_folder

    for selection in ([], ["other"], "q.*", r"(", "all-linear"):
        path = write_peft_folder(
            tmp_path / "in", {**lora_tensors("a.q"), **lora_tensors("a.v")}, target_modules=selection
        )
        save_adapter(load_adapter(path), tmp_path / "out")
        assert load_adapter(tmp_path / "out").metadata["selection"]["target_modules"] == ["a.q", "a.v"]
    path = write_peft_folder(tmp_path / "in", {**lora_tensors("a.q"), **lora_tensors("a.v")}, target_modules=["q", "v"])
    save_adapter(load_adapter(path), tmp_path / "out")
    assert load_adapter(tmp_path / "out").metadata["selection"]["target_modules"] == ["q", "v"]


def test_kinds_must_agree():
    from builders import random_adapter

    one = random_adapter("one", {"c": (3, 12)}, 2, kinds={"c": {"conv": [2, 2]}})
    other = random_adapter("other", {"c": (3, 12)}, 2, kinds={"c": {"conv": [4, 1]}})
    with pytest.raises(SheetbendError, match=r"module c is of kind .*\[4, 1\].*\[2, 2\]"):
        Merger().merge([one, other])


def test_rank_zero_of_every_kind_is_saved(tmp_path):
    from builders import random_adapter

    adapter = random_adapter(
        "zero", {"e": (4, 7), "c": (3, 12)}, 2, kinds={"e": "embedding", "c": {"conv": [2, 2]}}, selection={}
    )
    adapter._updates = {module: LowRankUpdate(A=update.A[:0], B=update.B[:, :0]) for module, update in adapter.items()}
    save_adapter(adapter, tmp_path / "zero")
    again = load_adapter(tmp_path / "zero")
    assert {module: update.shape for module, update in again.items()} == {"e": (4, 7), "c": (3, 12)}
    assert not any(update.dense().any() for update in again.values())


def test_shapes_by_hand():
    assert lying_shape((4, 7), "embedding") == (7, 4)
    assert lying_shape((5, 6), "linear", transposed=True) == (6, 5)
    assert lying_shape((5, 6), "parameter", transposed=True) == (5, 6)
    assert lying_shape((1,), {"shape": []}) == ()
