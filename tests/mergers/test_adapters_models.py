"""Where updates go in a model: by a prefix, into tied and shared weights, one at a time."""

import pytest
import torch
from builders import random_adapter
from torch import nn

from mergers import Adapter, DenseUpdate, Merger, SheetbendError, apply_adapter, weight_updates
from mergers.models import iter_weight_updates, match_parameters
from mergers.updates import LowRankUpdate

SHAPES = {"layers.0.q": (6, 5), "layers.1.q": (6, 5)}


def tower():
    torch.manual_seed(0)
    return nn.ModuleDict({"layers": nn.ModuleList(nn.ModuleDict({"q": nn.Linear(5, 6)}) for _ in range(2))})


def test_a_part_of_the_model_is_found_by_its_prefix():
    adapter = random_adapter("task", SHAPES, 2)
    whole = nn.ModuleDict({"clip": nn.ModuleDict({"vision": tower(), "text": nn.Linear(5, 6)})})
    assert match_parameters(adapter, whole) == {name: f"clip.vision.{name}.weight" for name in SHAPES}
    before = tower().state_dict()
    after = apply_adapter(adapter, whole)["clip"]["vision"].state_dict()
    for name, update in adapter.items():
        torch.testing.assert_close(after[f"{name}.weight"], before[f"{name}.weight"] + update.dense())


def test_the_whole_is_found_in_its_part():
    adapter = random_adapter("task", {f"clip.vision.{name}": shape for name, shape in SHAPES.items()}, 2)
    assert set(weight_updates(adapter, tower())) == {f"{name}.weight" for name in SHAPES}


def test_a_prefix_must_be_the_only_one():
    two = nn.ModuleDict({"vision": tower(), "text": tower()})
    with pytest.raises(SheetbendError, match=r"module layers\.0\.q may be (text|vision)\.layers\.0\.q, (text|vision)"):
        match_parameters(random_adapter("task", SHAPES, 2), two)
    shared = tower()
    twice = nn.ModuleDict({"vision": shared, "encoder": shared})  # two names of one module are one place
    assert len(match_parameters(random_adapter("task", SHAPES, 2), twice)) == 2


def test_a_wrapped_part_of_a_model_is_found():
    peft = pytest.importorskip("peft")
    wrapped = nn.ModuleDict({"vision": peft.get_peft_model(tower(), peft.LoraConfig(r=2, target_modules=["q"]))})
    prefix = "vision.base_model.model."
    expected = {f"{prefix}{name}.base_layer.weight" for name in SHAPES}
    assert set(match_parameters(random_adapter("task", SHAPES, 2), wrapped).values()) == expected


class Language(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        if tied:
            self.head.weight = self.embed.weight


@pytest.mark.parametrize(("module", "shape", "kind"), [("embed", (4, 7), "embedding"), ("head", (7, 4), "linear")])
def test_a_tied_weight_takes_no_lora(module, shape, kind):
    adapter = random_adapter("task", {module: shape}, 2, kinds={module: kind})
    other = {"embed": "head", "head": "embed"}[module]
    with pytest.raises(SheetbendError, match=f"the weight of {module} is tied to {other}"):
        apply_adapter(adapter, Language(tied=True))
    model = Language(tied=False)
    before = getattr(model, module).weight.clone()
    delta = adapter[module].dense()
    apply_adapter(adapter, model)
    torch.testing.assert_close(getattr(model, module).weight, before + (delta.T if kind == "embedding" else delta))


def test_a_tied_weight_takes_the_difference_of_checkpoints_once():
    kinds = {"embed": "parameter", "head": "parameter"}
    update = DenseUpdate(torch.ones(7, 4))
    model = Language(tied=True)
    before = model.embed.weight.clone()
    apply_adapter(Adapter({"head": update}, "task", metadata={"kinds": kinds}), model)
    torch.testing.assert_close(model.embed.weight, before + 1)
    with pytest.raises(SheetbendError, match="the weight of head is tied to embed"):
        apply_adapter(
            Adapter({"embed": update, "head": update}, "task", metadata={"kinds": kinds}), Language(tied=True)
        )


def test_parameters_and_buffers_by_their_own_names():
    model = nn.ModuleDict({"norm": nn.BatchNorm1d(3)})
    names = ("norm", "norm.bias", "norm.running_mean")
    kinds = dict.fromkeys(names, "parameter")
    adapter = Adapter({name: DenseUpdate(torch.full((3,), 2.0)) for name in names}, "task", metadata={"kinds": kinds})
    apply_adapter(adapter, model)
    assert torch.equal(model["norm"].weight.data, torch.full((3,), 3.0))
    assert torch.equal(model["norm"].bias.data, torch.full((3,), 2.0))
    assert torch.equal(model["norm"].running_mean, torch.full((3,), 2.0))


class Watched(LowRankUpdate):
    """Knows how many dense tensors of its kind are alive."""

    alive = most = 0

    def dense(self):
        import weakref

        delta = super().dense()
        Watched.alive += 1
        Watched.most = max(Watched.most, Watched.alive)

        def gone():
            Watched.alive -= 1

        weakref.finalize(delta, gone)
        return delta


def test_one_dense_update_is_held_at_a_time():
    updates = {f"layers.{index}.q": Watched(torch.ones(1, 5), torch.ones(6, 1)) for index in range(2)}
    apply_adapter(Adapter(updates, "task"), tower())
    assert Watched.most == 1
    assert Watched.alive == 0


def test_all_shapes_are_checked_before_anything_is_computed():
    class Forbidden(LowRankUpdate):
        def dense(self):
            raise AssertionError("computed")

    updates = {
        "layers.0.q": Forbidden(torch.ones(1, 5), torch.ones(6, 1)),
        "layers.1.q": Forbidden(torch.ones(1, 9), torch.ones(6, 1)),
    }
    with pytest.raises(SheetbendError, match=r"layers\.1\.q is \(6, 9\)"):
        next(iter_weight_updates(Adapter(updates, "task"), tower()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weight: weight.to("meta"), "float32 on meta"),
        (lambda weight: weight.to(torch.int8), "torch.int8 on cpu"),
    ],
)
def test_weights_that_cannot_be_added_to(change, words):
    model = tower()
    model["layers"][1]["q"].weight = nn.Parameter(change(model["layers"][1]["q"].weight.data), requires_grad=False)
    before = model["layers"][0]["q"].weight.clone()
    with pytest.raises(SheetbendError, match=f"weight of layers.1.q .*{words}"):
        apply_adapter(random_adapter("task", SHAPES, 2), model)
    assert torch.equal(model["layers"][0]["q"].weight, before)


def test_a_merge_of_parts_and_wholes_is_applied():
    from mergers.adapters import align

    one = random_adapter("one", SHAPES, 2)
    other = random_adapter("other", {f"vision.{name}": shape for name, shape in SHAPES.items()}, 2, seed=1)
    merged = Merger().merge(align([one, other]))
    whole = merged.apply(nn.ModuleDict({"vision": tower()}))
    expected = tower()["layers"][0]["q"].weight + (one["layers.0.q"].dense() + other["vision.layers.0.q"].dense()) / 2
    torch.testing.assert_close(whole["vision"]["layers"][0]["q"].weight, expected)
