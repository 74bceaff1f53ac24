"""Adapters saved for a part of a model, or that cover different modules, under one set of names."""

import json

import pytest
import torch
from builders import random_adapter
from torch import nn

from mergers import Adapter, DenseUpdate, LowRankUpdate, Merger, SheetbendError, load_adapter, save_adapter
from mergers.adapters import align, check_same_base
from mergers.adapters.names import Renaming, module_name, renamings

INNER = {"encoder.layers.0.q": (6, 5), "encoder.layers.1.q": (6, 5)}
OUTER = {f"vision_model.{name}": shape for name, shape in INNER.items()}
WHOLE = {f"clip.{name}": shape for name, shape in OUTER.items()}


def adapters(*shapes, **options):
    return [random_adapter(f"task_{index}", shape, 2, seed=index, **options) for index, shape in enumerate(shapes)]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]])
def test_one_prefix_makes_the_names_agree(order):
    given = adapters(INNER, OUTER, WHOLE, selection={"target_modules": "encoder.*"})
    chosen = [given[index] for index in order]
    aligned = align(chosen)
    check_same_base(aligned)
    for before, after in zip(chosen, aligned, strict=True):
        assert list(after) == list(WHOLE)
        assert after.name == before.name
        assert all(after_update is update for after_update, update in zip(after.values(), before.values(), strict=True))
    notes = aligned[0].metadata["notes"]
    assert sorted(notes) == [
        "task_0: module names begin with 'clip.vision_model.' here",
        "task_1: module names begin with 'clip.' here",
    ]
    assert all(adapter.metadata["notes"] == notes for adapter in aligned)
    json.dumps(notes)
    # What selected the old names would select nothing, or something else.
    assert not any(adapter.metadata["selection"] for adapter, name in zip(aligned, order, strict=True) if name != 2)


def test_kinds_and_heads_go_with_the_names():
    one = random_adapter("one", {"patch": (3, 12)}, 1, kinds={"patch": {"conv": [2, 2]}})
    one.heads["score.weight"] = torch.ones(2, 2)
    other = random_adapter("other", {"tower.patch": (3, 12)}, 1, kinds={"tower.patch": {"conv": [2, 2]}})
    aligned = align([one, other])
    check_same_base(aligned)
    assert aligned[0].metadata["kinds"] == {"tower.patch": {"conv": [2, 2]}}
    assert list(aligned[0].heads) == ["score.weight"]


def test_names_that_agree_are_left_alone():
    given = adapters(INNER, INNER)
    assert align(given) == given
    assert all(one is other for one, other in zip(align(given), given, strict=True))


def test_shapes_must_agree_under_the_prefix():
    given = align(adapters(INNER, {**OUTER, "vision_model.encoder.layers.1.q": (6, 9)}))
    with pytest.raises(SheetbendError, match=r"vision_model\.encoder\.layers\.1\.q is \(6, 9\)"):
        check_same_base(given)


def test_two_prefixes_explain_nothing():
    both = {**OUTER, **{f"text_model.{name}": shape for name, shape in INNER.items()}}
    with pytest.raises(SheetbendError, match=r"more than one prefix \('text_model\.', 'vision_model\.'\)"):
        align(adapters(INNER, both), missing="zero")


def test_a_prefix_that_explains_only_some_explains_none():
    part = {"vision_model.encoder.layers.0.q": (6, 5), "vision_model.encoder.layers.7.q": (6, 5)}
    aligned = align(adapters(INNER, part))
    with pytest.raises(SheetbendError, match=r"has no module encoder\.layers\.0\.q, encoder\.layers\.1\.q, but"):
        check_same_base(aligned)


def test_modules_that_differ_are_listed():
    many = {f"layers.{index}.q": (6, 5) for index in range(9)}
    with pytest.raises(SheetbendError, match=r"task_1: has no module layers\.1\.q, layers\.2\.q, but task_0 has"):
        check_same_base(adapters({name: many[name] for name in list(many)[:3]}, {"layers.0.q": (6, 5)}))
    with pytest.raises(SheetbendError, match=r"layers\.6\.q and 2 more, but task_0 has; .*missing='zero'"):
        check_same_base(adapters(many, {"layers.0.q": (6, 5)}))


def test_missing_modules_count_as_zero(tmp_path):
    shapes = [{"a": (6, 5), "b": (4, 5)}, {"b": (4, 5), "c": (3, 3)}]
    given = adapters(*shapes, selection={"target_modules": ["b"]})
    aligned = align(given, missing="zero")
    check_same_base(aligned)
    assert [list(adapter) for adapter in aligned] == [["a", "b", "c"]] * 2
    assert aligned[0]["c"].rank == aligned[1]["a"].rank == 0
    assert aligned[0].metadata["notes"] == ["task_0: has no c; counted as zero", "task_1: has no a; counted as zero"]
    assert [list(adapter) for adapter in given] == [["a", "b"], ["b", "c"]]  # the given ones are not changed
    merged = Merger("full", "mean").merge(aligned)
    torch.testing.assert_close(merged["a"].dense(), given[0]["a"].dense() / 2)
    torch.testing.assert_close(merged["b"].dense(), (given[0]["b"].dense() + given[1]["b"].dense()) / 2)
    save_adapter(merged, tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["a", "b", "c"]
    torch.testing.assert_close(load_adapter(tmp_path / "merged")["c"].dense(), given[1]["c"].dense() / 2)


def test_missing_vectors_and_kinds_count_as_zero():
    one = Adapter({"norm.bias": DenseUpdate(torch.ones(3))}, "one", metadata={"kinds": {"norm.bias": "parameter"}})
    other = random_adapter("other", {"conv": (3, 4)}, 1, dtype=torch.bfloat16, kinds={"conv": {"conv": [2, 2]}})
    aligned = align([one, other], missing="zero")
    check_same_base(aligned, same_base=True)
    assert torch.equal(aligned[1]["norm.bias"].dense(), torch.zeros(3))
    assert isinstance(aligned[0]["conv"], LowRankUpdate)
    assert aligned[0]["conv"].A.dtype == torch.bfloat16
    assert aligned[0].metadata["kinds"] == aligned[1].metadata["kinds"]


def test_a_lora_says_what_a_difference_does_not_know():
    difference = Adapter(
        {"q": DenseUpdate(torch.ones(6, 5)), "norm": DenseUpdate(torch.ones(3))},
        "full",
        metadata={"kinds": {"q": "parameter", "norm": "parameter"}},
    )
    lora = random_adapter("lora", {"q": (6, 5)}, 2)
    for order in ([difference, lora], [lora, difference]):
        aligned = align(order, missing="zero")
        check_same_base(aligned)
        assert [adapter.metadata["kinds"]["q"] for adapter in aligned] == ["linear", "linear"]
        assert {adapter.metadata["kinds"]["norm"] for adapter in aligned} == {"parameter"}
    # Conv1D stores its weight turned round, and so does not the update that PEFT saves.
    with pytest.raises(SheetbendError, match="fan_in_fan_out differs"):
        check_same_base(
            align([difference, random_adapter("turned", {"q": (6, 5)}, 2, fan_in_fan_out=True)], missing="zero")
        )


def test_an_unknown_base_is_noted():
    given = [*adapters(INNER), random_adapter("svhn", INNER, 2, base_model=None)]
    aligned = align(given)
    check_same_base(aligned)
    assert aligned[0].metadata["notes"] == aligned[1].metadata["notes"] == ["svhn: names no base model"]


def test_two_tasks_of_one_name():
    with pytest.raises(SheetbendError, match="two adapters are named 'task_0'"):
        check_same_base([*adapters(INNER), *adapters(INNER)])


def test_what_missing_may_be():
    with pytest.raises(SheetbendError, match="missing is 'skip'; give 'error' or 'zero'"):
        align(adapters(INNER), missing="skip")


def test_renamings():
    assert renamings(["a.b"], {"a.b", "x.a.b"}) == [Renaming()]
    assert sorted(renamings(["a.b"], {"x.a.b", "y.a.b"})) == [Renaming(add="x."), Renaming(add="y.")]
    assert renamings(["x.y.q", "x.y.v"], {"q", "v"}) == [Renaming(strip="x.y.")]
    assert renamings(["q"], {"xq", "a.qq"}) == []


def test_each_parameter_has_a_name_of_its_own():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.token = nn.Parameter(torch.ones(2))
            self.layer = nn.MultiheadAttention(4, 2)

    parameters = dict(Odd().named_parameters())
    assert len({module_name(name) for name in parameters}) == len(parameters)
