"""LoRA on torch's MultiheadAttention: the stacked projections of query, key and value as one update."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mergers import Merger, SheetbendError, Ties, load_adapter, load_difference, save_adapter
from mergers.models import match_parameters

peft = pytest.importorskip("peft")


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Linear(8, 8)

    def forward(self, x):
        return self.mlp(self.attn(x, x, x, need_weights=False)[0])


def base():
    torch.manual_seed(0)
    return Attention()


def saved(path, seed, out_proj=False, **config):
    """Save what PEFT writes for random values; those of out_proj are zero unless wanted."""
    config = {"r": 2, "lora_alpha": 6, "target_modules": ["attn", "mlp"], "init_lora_weights": False, **config}
    model = peft.get_peft_model(base(), peft.LoraConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            zero = ".out_proj.lora_B" in name and not out_proj
            parameter.data = torch.randn(parameter.shape, generator=generator) * (0 if zero else 0.3)
    model.save_pretrained(path)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("config", [{}, {"rank_pattern": {"^attn": 3}, "alpha_pattern": {"attn": 5}}])
def test_stacked_projections_are_read_as_peft_computes_them(tmp_path, config):
    model, x = saved(tmp_path / "a", 1, **config), torch.randn(3, 4, 8)
    adapter = load_adapter(tmp_path / "a")
    assert {name: update.shape for name, update in adapter.items()} == {"attn.in_proj_weight": (24, 8), "mlp": (8, 8)}
    assert adapter.metadata["kinds"]["attn.in_proj_weight"] == "in_proj"
    torch.testing.assert_close(Merger().merge([adapter]).apply(base())(x), model(x))


@torch.no_grad()
def test_a_merge_goes_back_into_peft(tmp_path):
    for seed in (1, 2):
        saved(tmp_path / str(seed), seed, r=1 + seed)
    merged = Merger("knots", Ties(density=0.6)).merge([load_adapter(tmp_path / str(seed)) for seed in (1, 2)])
    x = torch.randn(3, 4, 8)
    expected = merged.apply(base())(x)
    merged.save(tmp_path / "merged")
    save_adapter(merged, tmp_path / "plainly")
    for folder in ("merged", "plainly"):
        loaded = peft.PeftModel.from_pretrained(base(), tmp_path / folder).eval()
        torch.testing.assert_close(loaded(x), expected)
        assert load_adapter(tmp_path / folder).keys() == merged.keys()


def test_it_merges_with_the_difference_of_full_checkpoints(tmp_path):
    saved(tmp_path / "lora", 1, target_modules=["attn"])
    before = base().state_dict()
    save_file(before, tmp_path / "before.safetensors")
    save_file({name: tensor + 0.1 for name, tensor in before.items()}, tmp_path / "after.safetensors")
    difference = load_difference(
        tmp_path / "after.safetensors", tmp_path / "before.safetensors", modules=["in_proj_weight"]
    )
    merged = Merger().merge([load_adapter(tmp_path / "lora"), difference])
    lora = load_adapter(tmp_path / "lora")["attn.in_proj_weight"].dense()
    torch.testing.assert_close(merged["attn.in_proj_weight"].dense(), (lora + 0.1) / 2)


def test_what_stands_below_an_adapted_module_is_found(tmp_path):
    model = saved(tmp_path / "a", 1)
    before = base().state_dict()
    save_file(before, tmp_path / "before.safetensors")
    difference = load_difference(tmp_path / "before.safetensors", tmp_path / "before.safetensors")
    names = set(match_parameters(difference, model).values())
    assert names == {name for name, _ in model.named_parameters() if "lora_" not in name}


def test_a_trained_out_proj_is_refused(tmp_path):
    saved(tmp_path / "a", 1, out_proj=True)
    with pytest.raises(SheetbendError, match=r"attn is a MultiheadAttention with LoRA on its out_proj.*adds twice"):
        load_adapter(tmp_path / "a")
