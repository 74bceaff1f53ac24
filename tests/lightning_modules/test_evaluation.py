import copy
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import CLIPVisionModelWithProjection

from callbacks.merge import MergeCallback
from datamodules import Task
from lightning_modules import LoRA
from lightning_modules.variants import Places, Variant, finetuned, merged_variant, replaced
from mergers import Adapter, DenseUpdate, LowRankUpdate, Merger, SheetbendError, Ties
from tests.lightning_modules.training import QUIET, fit, module
from tests.stand_ins import StandIns


def test_variants_that_were_let_go_do_not_pass_for_the_base(tiny_clip, tmp_path):
    model = fit(tiny_clip, tmp_path, ["hue"], [MergeCallback({"mean": Merger()})], max_epochs=1)
    with pytest.raises(RuntimeError, match="let go"):
        model.features_of(model.variants["mean"], torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "hue")


def test_variants_compute_what_merged_weights_compute(tiny_clip, tmp_path):
    """functional_call on the PEFT model against a plain model with the merged weights written into it."""
    model = fit(tiny_clip, tmp_path, ["hue", "shade"]).eval()
    merged = Merger("knots", Ties(density=0.5), coefficients=0.7).merge(model.adapters())
    variant = model.variant("ties", merged)
    pixels = torch.randint(0, 255, (6, 3, 8, 8), dtype=torch.uint8)
    plain = CLIPVisionModelWithProjection.from_pretrained(tiny_clip).eval()
    inputs = (pixels / 255 - 0.5) / 0.5
    with torch.no_grad():
        base = torch.nn.functional.normalize(plain(pixel_values=inputs).image_embeds, dim=-1)
        expected = torch.nn.functional.normalize(merged.apply(plain)(pixel_values=inputs).image_embeds, dim=-1)
    torch.testing.assert_close(model.features_of(variant, pixels, "hue"), expected)
    model.set_variants({})
    torch.testing.assert_close(model.features_of(model.variants["pretrained"], pixels, "hue"), base)
    finetuned = model.features_of(model.variants["finetuned"], pixels, "shade")
    model.activate("shade")
    with torch.no_grad():
        torch.testing.assert_close(finetuned, model(pixels))
    assert (finetuned - base).abs().max() > 1e-3


def test_every_batch_is_loaded_once_and_runs_through_all_variants(tiny_clip, tmp_path):
    loads = []

    class Counting(StandIns):
        def load(self, task):
            splits = super().load(task)
            batch = splits["test"].batch
            splits["test"].batch = lambda indices: (loads.append((task, len(indices))), batch(indices))[1]
            return splits

    merge = MergeCallback({"mean": Merger(), "ties": Merger("knots", "ties")})
    model = fit(tiny_clip, tmp_path, ["hue", "shade"], max_epochs=1)
    loads.clear()
    trainer = Trainer(**QUIET, callbacks=[merge], default_root_dir=tmp_path)
    trainer.test(model, Counting(["hue", "shade"]), verbose=False)
    assert len(loads) == 4
    scores = {(s.variant, s.task, s.metric): s for s in model.scores()}
    for variant in ("pretrained", "finetuned", "mean", "ties"):
        assert {task for name, task, _ in scores if name == variant} == {"hue", "shade", "all"}
        assert scores[variant, "hue", "accuracy"].count == 45
        assert scores[variant, "all", "joint_hits@1"].count == 90


def test_merging_one_task_by_mean_is_the_finetuned_model(tiny_clip, tmp_path):
    model = fit(tiny_clip, tmp_path, ["hue"], max_epochs=2)
    trainer = Trainer(**QUIET, callbacks=[MergeCallback({"mean": Merger()})], default_root_dir=tmp_path)
    trainer.test(model, StandIns(["hue"]), verbose=False)
    scores = {(s.variant, s.metric): s.value for s in model.scores() if s.task == "hue"}
    assert {metric for variant, metric in scores if variant == "mean"} == {"accuracy", "joint_hits@1"}
    for metric in ("accuracy", "joint_hits@1"):
        assert scores["mean", metric] == scores["finetuned", metric]


def test_merged_accuracy_is_measured_at_each_validation_while_fitting(tiny_clip, tmp_path):
    class Collect(Callback):
        def __init__(self):
            self.variants = []

        def on_validation_end(self, trainer, pl_module):
            self.variants.append({score.variant for score in pl_module.scores()})

    for while_fitting, expected in [(True, {"pretrained", "finetuned", "mean"}), (False, {"pretrained", "finetuned"})]:
        collect = Collect()
        merge = MergeCallback({"mean": Merger()}, while_fitting=while_fitting)
        fit(tiny_clip, tmp_path, ["hue", "shade"], [merge, collect], max_epochs=2)
        assert collect.variants == [expected, expected]


def test_nothing_is_left_of_merged_weights_after_a_test(tiny_clip, tmp_path):
    model = fit(tiny_clip, tmp_path, ["hue", "shade"], max_epochs=1)
    trainer = Trainer(**QUIET, callbacks=[MergeCallback({"mean": Merger()})], default_root_dir=tmp_path)
    trainer.test(model, StandIns(["hue", "shade"]), verbose=False)
    assert model.variants["mean"].description and not model.variants["mean"].weights
    assert not list(Path(tmp_path).glob("**/.*"))


@pytest.mark.parametrize("method", ["task_arithmetic", Ties(density=0.5)])
@pytest.mark.parametrize("space", ["full", "knots"])
def test_branches_compute_what_dense_copies_compute(tiny_clip, tmp_path, space, method):
    model = fit(tiny_clip, tmp_path, ["hue", "shade"], lora=LoRA(r=1)).eval()
    merged = Merger(space, method).merge(model.adapters())
    dense = merged_variant("dense", merged, model.model)
    branched = merged_variant("branched", merged, model.model, branches=True)
    low_rank = all(isinstance(update, LowRankUpdate) for update in merged.values())
    assert not dense.branches and len(dense.weights) == len(merged)
    assert (len(branched.branches), len(branched.weights)) == ((len(merged), 0) if low_rank else (0, len(merged)))
    pixels = torch.randint(0, 255, (6, 3, 8, 8), dtype=torch.uint8)
    one, other = (model.features_of(variant, pixels, "hue") for variant in (dense, branched))
    torch.testing.assert_close(one, other)
    base = model.features_of(Variant("base"), pixels, "hue")
    assert (one - base).abs().max() > 1e-3


def test_a_branch_is_taken_only_where_it_is_smaller():
    model = nn.Sequential(nn.Linear(8, 6, bias=False), nn.Linear(6, 40, bias=False))
    updates = {
        "0": LowRankUpdate(A=torch.randn(4, 8), B=torch.randn(6, 4)),  # 56 numbers for 48
        "1": LowRankUpdate(A=torch.randn(4, 6), B=torch.randn(40, 4), scale=0.5),  # 184 for 240
    }
    variant = merged_variant("x", Adapter(updates, name="x"), model, branches=True)
    assert set(variant.weights) == {"0.weight"} and set(variant.branches) == {"1"}
    inputs = torch.randn(3, 8)
    expected = inputs @ (model[0].weight + updates["0"].dense()).T @ (model[1].weight + updates["1"].dense()).T
    with torch.no_grad(), replaced(model, variant):
        torch.testing.assert_close(model(inputs), expected)


def test_a_shared_parameter_is_replaced_in_every_layer_and_comes_back():
    embedding, head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, head)
    before = model[0].weight
    with replaced(model, Variant("x", {"0.weight": torch.eye(5, 4)})):
        assert model(torch.tensor([2])).argmax() == 2
    assert model[0].weight is before and model[1].weight is before
    with pytest.raises(ZeroDivisionError), replaced(model, Variant("x", {"0.weight": torch.eye(5, 4)})):
        raise ZeroDivisionError
    assert model[0].weight is before and model[1].weight is before


def test_a_sweep_looks_through_the_model_once_and_measures_the_same(tiny_clip, tmp_path, monkeypatch):
    model = fit(tiny_clip, tmp_path, ["hue", "shade"])
    data = StandIns(["hue", "shade"], eval_batch_size=10)
    trainer = Trainer(**QUIET, callbacks=[MergeCallback({"mean": "mean", "ties": "ties"})], default_root_dir=tmp_path)
    looked, activated, places, activate = [], [], Places.__init__, model.model.set_adapter
    monkeypatch.setattr(Places, "__init__", lambda self, whole: (looked.append(whole), places(self, whole))[1])
    monkeypatch.setattr(model.model, "set_adapter", lambda task: (activated.append(task), activate(task))[1])
    trainer.test(model, data, verbose=False)
    assert looked == [model.model] and activated == ["hue", "shade"]  # of five batches and three variants each
    scores = {(s.variant, s.task): s.value for s in model.scores() if s.metric == "accuracy"}
    variants = MergeCallback({"mean": "mean", "ties": "ties"}).build_variants(model.eval())
    for name, variant in {"finetuned": finetuned(), **variants}.items():
        for task in ("hue", "shade"):
            pixels, labels = data.split(task, "test").batch(list(range(45)))
            predicted = model.task_logits(model.features_of(variant, pixels, task), task).argmax(1)
            assert scores[name, task] == pytest.approx((predicted == labels).float().mean().item())
    assert len(looked) == 1 + 4  # outside a sweep, each call looks for itself


def test_merged_weights_keep_the_dtype_of_the_layer():
    model = nn.Linear(4, 3, bias=False).bfloat16()
    update = DenseUpdate(torch.full((3, 4), 2.0**-12))
    variant = merged_variant("x", Adapter({"": update}, name="x"), model)
    expected = (model.weight.float() + 2.0**-12).bfloat16()  # the sum is rounded, not the update
    assert variant.weights["weight"].dtype == torch.bfloat16
    assert torch.equal(variant.weights["weight"], expected)


def test_the_ensemble_takes_the_largest_joint_logit_of_all_adapters(tiny_clip, tmp_path):
    model = fit(tiny_clip, tmp_path, ["hue", "shade"])
    data = StandIns(["hue", "shade"])
    trainer = Trainer(**QUIET, callbacks=[MergeCallback({}, ensemble=True)], default_root_dir=tmp_path)
    trainer.test(model, data, verbose=False)
    scores = {(s.task, s.metric): s for s in model.scores() if s.variant == "ensemble"}
    assert {metric for _, metric in scores} == {"joint_hits@1", "joint_hits@3"}
    model.eval()
    hits = 0
    for task in ("hue", "shade"):
        split = data.split(task, "test")
        pixels, labels = split.batch(list(range(len(split))))
        logits = []
        for adapter in ("hue", "shade"):
            model.activate(adapter)
            with torch.no_grad():
                logits.append(model.joint_logits(model(pixels))["joint"])
        predicted = torch.stack(logits).max(0).values.argmax(1)
        own = (predicted == torch.tensor(model.joint["joint"].columns[task])[labels]).sum().item()
        assert scores[task, "joint_hits@1"].value == pytest.approx(own / len(split))
        hits += own
    assert scores["all", "joint_hits@1"].value == pytest.approx(hits / 90)


def test_an_ensemble_needs_a_joint_label_space(tiny_clip, tmp_path):
    model = fit(tiny_clip, tmp_path, ["hue"], max_epochs=1)
    model.evaluator.joint = {}
    with pytest.raises(SheetbendError, match="the tasks share no label space"):
        MergeCallback({}, ensemble=True).build_variants(model)


def test_absent_classes_are_never_chosen_and_get_no_gradient(tiny_clip):
    tasks = [Task("hue", ("red", "green", "blue"), ("a photo of {}.",), absent=("green",))]
    for smoothing in (0.0, 0.3):
        model = module(tiny_clip, label_smoothing=smoothing)
        model.build(tasks)
        features = nn.functional.normalize(torch.randn(20, 8), dim=-1).requires_grad_()
        logits = model.task_logits(features, "hue")
        assert torch.equal(logits[:, 1], torch.full((20,), -math.inf))
        assert set(logits.argmax(1).tolist()) == {0, 2}
        labels = torch.randint(2, (20,)) * 2
        loss = model.loss(features, labels, "hue")
        two = model.logits(features, "hue")[:, [0, 2]]
        torch.testing.assert_close(loss, cross_entropy(two, labels // 2, label_smoothing=smoothing))
        loss.backward()
        assert torch.isfinite(features.grad).all()


def test_checkpointed_activations_give_the_same_gradients(tiny_clip):
    pixels = torch.randint(0, 255, (6, 3, 8, 8), dtype=torch.uint8)
    gradients = []
    for checkpointing in (False, True):
        model = module(tiny_clip, gradient_checkpointing=checkpointing)
        model.build(StandIns(["hue"]).tasks)
        model.train()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model.loss(model(pixels), torch.arange(6) % 3, "hue").backward()
        gradients.append({name: copy.copy(p.grad) for name, p in model.task_parameters("hue").items()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])
    assert any(gradient.abs().max() > 0 for gradient in gradients[0].values())
