"""Adding an adapter to a model."""

import gc

import pytest
import torch
from builders import random_adapters
from torch import nn

from mergers import Adapter, DenseUpdate, LowRankUpdate, Merger, SheetbendError, apply_adapter, weight_updates
from mergers.models import _applied

SHAPES = {"encoder.q": (6, 5), "encoder.v": (4, 5)}


def model(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.ModuleDict({"encoder": nn.ModuleDict({"q": nn.Linear(5, 6), "v": nn.Linear(5, 4)})}).to(dtype)


def merged():
    return Merger("full", "ties").merge(random_adapters(2, SHAPES))


def test_apply_adds_the_dense_updates_and_nothing_else():
    update = merged()
    before, after = model(), update.apply(model())
    dense = update.dense()
    for name, parameter in before.state_dict().items():
        module = name.rpartition(".")[0]
        added = dense[module] if name.endswith("weight") else 0.0
        torch.testing.assert_close(after.state_dict()[name], parameter + added)


def test_apply_adds_in_float32_and_rounds_once():
    update = merged()
    after = update.apply(model(torch.bfloat16))["encoder"]["q"].weight
    start = model(torch.bfloat16)["encoder"]["q"].weight
    assert after.dtype == torch.bfloat16
    assert torch.equal(after, (start.float() + update["encoder.q"].dense()).to(torch.bfloat16))


def test_a_second_call_is_refused_whatever_the_adapter():
    target = merged().apply(model())
    weights = target["encoder"]["q"].weight.clone()
    for again in (merged(), random_adapters(1, SHAPES)[0]):
        with pytest.raises(SheetbendError, match=r"already carries adapter 'merged'; load the base model again"):
            apply_adapter(again, target)
    assert torch.equal(target["encoder"]["q"].weight, weights)


def test_models_are_forgotten():
    gc.collect()
    count = len(_applied)
    target = merged().apply(model())
    assert len(_applied) == count + 1
    del target
    gc.collect()
    assert len(_applied) == count


def test_missing_modules_are_listed_and_the_model_is_unchanged():
    shapes = {**SHAPES, **{f"decoder.{index}": (6, 5) for index in range(6)}}
    update = Merger().merge(random_adapters(2, shapes))
    target = model()
    with pytest.raises(SheetbendError, match=r"no module decoder\.0, decoder\.1, decoder\.2, decoder\.3 and 2 more"):
        update.apply(target)
    torch.testing.assert_close(target.state_dict(), model().state_dict())


def test_a_weight_of_another_shape_is_named():
    update = Merger().merge(random_adapters(2, {"encoder.q": (6, 9)}))
    with pytest.raises(SheetbendError, match=r"module encoder\.q is \(6, 9\).*a weight \(6, 5\)"):
        update.apply(model())
    with pytest.raises(SheetbendError, match=r"module encoder is .*no weight"):
        Merger().merge(random_adapters(2, {"encoder": (6, 9)})).apply(model())


def test_peft_wrapped_layers_are_found():
    peft = pytest.importorskip("peft")
    update = merged()
    wrapped = peft.get_peft_model(model(), peft.LoraConfig(r=2, target_modules=["q"]))
    names = set(weight_updates(update, wrapped))
    prefix = "base_model.model.encoder"
    assert names == {f"{prefix}.q.base_layer.weight", f"{prefix}.v.weight"}
    update.apply(wrapped)
    expected = model()["encoder"]["q"].weight + update["encoder.q"].dense()
    torch.testing.assert_close(wrapped.base_model.model["encoder"]["q"].base_layer.weight, expected)


def test_weight_updates_serve_functional_call():
    update, base = merged(), model()["encoder"]["q"]
    one = Adapter({"": update["encoder.q"]}, "one")
    parameters = dict(base.named_parameters())
    for name, delta in weight_updates(one, base).items():
        parameters[name] = parameters[name] + delta
    x = torch.randn(3, 5)
    expected = base(x) + x @ update["encoder.q"].dense().T
    torch.testing.assert_close(torch.func.functional_call(base, parameters, x), expected)


def test_updates_check_their_shapes():
    with pytest.raises(SheetbendError, match=r"A \(2, 3\) and B \(4, 3\) do not fit"):
        LowRankUpdate(A=torch.ones(2, 3), B=torch.ones(4, 3))


def test_updates_in_numbers():
    low = LowRankUpdate(A=torch.eye(2, 3), B=torch.ones(4, 2), scale=0.5)
    assert low.shape == (4, 3)
    assert low.rank == 2
    assert torch.equal(low.scaled(2.0).dense(), 2 * low.dense())
    dense = DenseUpdate(low.dense().bfloat16())
    assert dense.shape == (4, 3)
    assert dense.rank == 3
    assert DenseUpdate(torch.ones(3)).rank == 1
    assert torch.equal(dense.scaled(-1.0).dense(), -low.dense())


def test_adapters_are_ordered_maps():
    [adapter] = random_adapters(1, {"b": (2, 2), "a": (2, 2)})
    assert list(adapter) == ["b", "a"]
    assert "b" in adapter
    assert len(adapter) == 2
    assert "'task_0', 2 modules" in repr(adapter)
    assert adapter.label == "task_0"


def test_a_sum_that_overflows_float16_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)).half()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    updates = {"0": LowRankUpdate(torch.ones(1, 4), torch.ones(3, 1)), "1": DenseUpdate(torch.full((2, 3), 1e6))}
    with pytest.raises(SheetbendError, match=r"1\.weight and its update together do not fit torch\.float16"):
        apply_adapter(Adapter(updates, "a"), model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
