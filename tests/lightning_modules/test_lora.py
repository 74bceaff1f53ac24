"""LoRA on every kind of layer that transformers and open_clip have: Linear, Conv1D, fused attention."""

import copy

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import GPT2Config, GPT2Model

from lightning_modules.adapter_folders import install_adapters, write_adapter
from lightning_modules.lora import LoRA, adapter_parameters, live_adapter, lora_layers, without_adapters, wrap
from lightning_modules.variants import merged_variant, replaced
from mergers import Merger, SheetbendError, load_adapter


class Block(nn.Module):
    """Self-attention of torch and two linear layers, as open_clip has them."""

    def __init__(self, batch_first=True):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.c_fc = nn.Linear(8, 12)
        self.c_proj = nn.Linear(12, 8)

    def forward(self, x, mask=None):
        x = x + self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]
        return x + self.c_proj(self.c_fc(x).relu())


def block(**options):
    torch.manual_seed(0)
    return Block(**options).eval()


def wrapped(backbone, tasks=("a",), random=True, **settings):
    lora = LoRA(**{"r": 3, "alpha": 6, "dropout": 0.0, "target_modules": ["attn", "c_fc"], **settings})
    model = wrap(backbone, {task: lora.config(task, "base") for task in tasks}, seed=0)
    for task in tasks if random else ():
        generator = torch.Generator().manual_seed(len(task) + ord(task[0]))
        for parameter in adapter_parameters(model, task).values():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model.eval()


def explicit(task_parameters, x, mask=None):
    """Block() with weights W + 2 B A, by hand."""
    plain, names = block(), {"attn": "attn.in_proj_weight", "c_fc": "c_fc.weight"}
    weights = dict(plain.named_parameters())
    changed = {}
    for layer, parameter in names.items():
        a, b = (task_parameters[f"base_model.model.{layer}.lora_{factor}.a.weight"] for factor in "AB")
        changed[parameter] = weights[parameter].detach() + 2 * b @ a
    return torch.func.functional_call(plain, changed, (x, mask))


MASKS = {
    "none": None,
    "bool": torch.ones(5, 5).triu(1).bool(),
    "float": torch.randn(5, 5, generator=torch.Generator().manual_seed(3)),
    "of each head": torch.randn(6, 5, 5, generator=torch.Generator().manual_seed(4)),
}


@pytest.mark.parametrize("mask", MASKS)
def test_outputs_and_gradients_of_fused_attention_are_those_of_the_sum(mask):
    model, x = wrapped(block()), torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
    parameters = adapter_parameters(model, "a")
    values = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    expected = explicit(values, x, MASKS[mask])
    given = model(x, MASKS[mask])
    torch.testing.assert_close(given, expected)
    given.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, values[name].grad, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_sequence_first_and_no_adapter_give_what_torch_gives():
    x = torch.randn(3, 5, 8)
    for batch_first in (True, False):
        plain = block(batch_first=batch_first)
        model = wrapped(copy.deepcopy(plain))
        assert not torch.allclose(model(x), plain(x), rtol=1e-2)
        with model.disable_adapter():
            torch.testing.assert_close(model(x), plain(x))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:The model contains some adapter layers")  # PEFT's, of what is meant here
def test_without_adapters_is_what_peft_does_without_them():
    model, x = wrapped(block()), torch.randn(3, 5, 8)
    model.base_model.model.c_fc.enable_adapters(False)
    before = model(x)
    with without_adapters(model):
        given = model(x)
        with without_adapters(model):
            torch.testing.assert_close(model(x), given)
        torch.testing.assert_close(model(x), given)
    with model.disable_adapter():
        assert torch.equal(model(x), given)
    torch.testing.assert_close(given, block()(x))
    model.base_model.model.c_fc.enable_adapters(False)
    assert torch.equal(model(x), before)


def test_training_moves_nothing_but_the_adapter_in_use():
    model = wrapped(block(), tasks=("a", "b"), random=False, dropout=0.1).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    same = dict(model.named_parameters())
    optimiser = torch.optim.AdamW([*adapter_parameters(model, "a").values()], lr=0.1)
    model.set_adapter("a")
    for _ in range(3):
        optimiser.zero_grad()
        model(torch.randn(4, 5, 8)).square().sum().backward()
        optimiser.step()
    for name, parameter in model.named_parameters():
        assert parameter is same[name]  # PEFT's own layer makes new ones
        moved = not torch.equal(parameter, before[name])
        assert moved == (name in adapter_parameters(model, "a"))


def test_dropout_reaches_fused_attention():
    model, x = wrapped(block(), dropout=0.5, target_modules=["attn"]), torch.randn(2, 5, 8)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


@torch.no_grad()
def test_a_saved_folder_is_read_by_peft_by_mergers_and_back(tmp_path):
    model, x = wrapped(block()), torch.randn(3, 5, 8)
    write_adapter(model, "a", tmp_path / "a", {}, {})
    torch.testing.assert_close(PeftModel.from_pretrained(block(), tmp_path / "a").eval()(x), model(x))
    live, loaded = live_adapter(model, "a", "base"), load_adapter(tmp_path / "a")
    assert live.keys() == loaded.keys() == {"attn.in_proj_weight", "c_fc"}
    assert live.metadata["kinds"] == loaded.metadata["kinds"]
    for name, update in live.items():
        torch.testing.assert_close(loaded[name].dense(), update.dense())
    torch.testing.assert_close(install_adapters(block(), {"a": str(tmp_path / "a")}, "base").model.eval()(x), model(x))


@torch.no_grad()
@pytest.mark.parametrize("branches", [False, True])
def test_a_merge_of_fused_attention_runs_as_a_variant(branches):
    model, x = wrapped(block(), tasks=("a", "b"), r=2), torch.randn(3, 5, 8)
    merged = Merger("knots").merge([live_adapter(model, task, "base") for task in ("a", "b")])
    variant = merged_variant("mean", merged, model, branches)
    assert "base_model.model.attn.base_layer.in_proj_weight" in variant.weights
    with model.disable_adapter(), replaced(model, variant):
        given = model(x)
    torch.testing.assert_close(given, merged.apply(block())(x))
    with model.disable_adapter():
        torch.testing.assert_close(model(x), block()(x))


def test_a_bfloat16_backbone_has_float32_adapters():
    model = wrapped(block().to(torch.bfloat16))
    assert {p.dtype for p in adapter_parameters(model, "a").values()} == {torch.float32}
    assert model(torch.randn(2, 5, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_attention_between_two_sequences_is_refused():
    model = wrapped(block()).base_model.model.attn
    x = torch.randn(2, 5, 8)
    with pytest.raises(SheetbendError, match="between two sequences"):
        model(x, x.clone(), x.clone())


@torch.no_grad()
def test_conv1d_of_gpt2_trains_saves_and_merges(tmp_path, recwarn):
    def gpt2():
        torch.manual_seed(0)
        return GPT2Model(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=11, n_positions=12)).eval()

    model = wrapped(gpt2(), tasks=("a", "b"), target_modules=["c_attn", "c_fc"])
    assert not [warning for warning in recwarn if "fan_in_fan_out" in str(warning.message)]
    assert all(config.fan_in_fan_out for config in model.peft_config.values())
    tokens = torch.tensor([[1, 2, 3, 10]])
    model.set_adapter("b")
    expected = model(tokens).last_hidden_state
    live = live_adapter(model, "b", "base")
    assert live["h.0.attn.c_attn"].shape == (24, 8)
    torch.testing.assert_close(Merger().merge([live]).apply(gpt2())(tokens).last_hidden_state, expected)
    write_adapter(model, "b", tmp_path / "b", {}, {})
    loaded = PeftModel.from_pretrained(gpt2(), tmp_path / "b").eval()
    torch.testing.assert_close(loaded(tokens).last_hidden_state, expected)
    installed = install_adapters(gpt2(), {"b": str(tmp_path / "b")}, "base").model.eval()
    torch.testing.assert_close(installed(tokens).last_hidden_state, expected)
    variant = merged_variant("b", Merger().merge([load_adapter(tmp_path / "b")]), model)
    with model.disable_adapter(), replaced(model, variant):
        torch.testing.assert_close(model(tokens).last_hidden_state, expected)


def test_all_linear_takes_fused_attention_whole():
    assert list(lora_layers(wrapped(block(), target_modules="all-linear"))) == ["attn", "c_fc", "c_proj"]
    assert list(lora_layers(wrapped(block(), target_modules=r"c_.*"))) == ["c_fc", "c_proj"]
    assert list(lora_layers(wrapped(nn.Sequential(nn.Linear(4, 4)), target_modules="all-linear"))) == ["0"]


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["out_proj"], "attn.out_proj, part of a MultiheadAttention, which never calls it.*end in attn, c_fc, c_proj"),
        (["attn", "out_proj"], "out_proj"),
        (["qkv"], "qkv: no layer of Block has such a name; its linear layers end in attn, c_fc, c_proj"),
        ("nothing", "nothing: no layer of Block has such a name"),
        ("c_(", r"'c_\(' is no regular expression"),
    ],
)
def test_layers_that_cannot_be_adapted_are_refused_in_one_line(targets, words):
    with pytest.raises(SheetbendError, match=words) as caught:
        wrapped(block(), target_modules=targets)
    assert "\n" not in str(caught.value)


def test_layers_of_other_kinds_are_refused():
    convolution = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4))
    with pytest.raises(SheetbendError, match="reach 0, Conv2d; only linear layers merge: its linear layers end in 1"):
        wrapped(convolution, random=False, target_modules=["0", "1"])
    with pytest.raises(SheetbendError, match=r"0: Target module ReLU\(\) is not supported; its linear"):
        wrapped(nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), random=False, target_modules=["0"])


def test_a_rank_above_all_there_is_is_refused():
    with pytest.raises(SheetbendError, match=r"lora.r is above 8, all that attn has"):
        wrapped(block(), r=9)
