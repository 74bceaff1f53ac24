"""One step of an adaptation against plain autograd over all tasks; bad input; when it stops."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import normalize
from transformers import AutoModelForSequenceClassification, CLIPVisionModelWithProjection

from datamodules import Task
from datamodules.generation_tasks import families
from lightning_modules import Adaptation, TestTimeAdaptation
from lightning_modules.test_time_adaptation import on_plateau
from mergers import SheetbendError
from tests.lightning_modules.adapting import (
    adapt,
    full_clip,
    full_text,
    lora_clip,
    lora_open_clip,
    lora_text,
    randomised,
    unlabelled,
)
from tests.lightning_modules.image_models import open_clip_model
from tests.mergers.test_adaptive import reference_deltas

KINDS = ["lora clip", "full clip", "lora open_clip", "lora roberta", "lora gpt2", "full roberta", "full gpt2"]


def build(kind, tiny_clip, root):
    """A model, its data, and what runs the bare backbone with given weights up to the logits of a task."""
    way, name = kind.split()
    if name == "open_clip":
        built, plain, std = lora_open_clip(root), open_clip_model().visual, 0.25
    elif name == "clip":
        built = lora_clip(tiny_clip) if way == "lora" else full_clip(tiny_clip, root)
        plain, std = CLIPVisionModelWithProjection.from_pretrained(tiny_clip), 0.5
    else:
        built = (lora_text if way == "lora" else full_text)(name, root)
        plain = AutoModelForSequenceClassification.from_pretrained(root / name)
        plain.config.pad_token_id = 0
    plain, model = plain.eval(), built[0]

    def logits(weights, inputs, task):
        if name in ("roberta", "gpt2"):
            inputs = {key: value for key, value in inputs.items() if key != "token_type_ids"}
            return functional_call(plain, weights | model.head_tensors(task), (), inputs).logits
        pixels = (inputs / 255 - 0.5) / std
        out = functional_call(plain, weights, (pixels,))
        features = normalize(out if name == "open_clip" else out.image_embeds, dim=-1)
        return model.logit_scale * features @ model.head_tensors(task)["class_vectors"].T

    return built, plain, logits


def merged_parameters(plain, module, logits, coefficients):
    """Every weight of the bare model merged from dense updates, in one autograd graph."""
    merge, parameters = module.merge, dict(plain.named_parameters())
    deltas = reference_deltas(merge.settings, merge.adapters, logits, coefficients, merge.sizes)
    weights = {}
    for name, delta in deltas.items():
        parameter = name if name in parameters else f"{name}.weight"
        owner = plain.get_submodule(parameter.rpartition(".")[0])
        turned = type(owner).__name__ == "Conv1D" and delta.ndim == 2
        base = parameters[parameter].detach()
        weights[parameter] = (base + (delta.T if turned else delta.reshape(base.shape))).float()
    return weights


def reference_step(plain, run, module, batches):
    """The summed entropies of all tasks, and their gradients at masks and coefficients by one backward pass."""
    logits, coefficients = (p.detach().clone().requires_grad_() for p in (module.logits, module.coefficients))
    weights = merged_parameters(plain, module, logits, coefficients)
    total = 0.0
    for batch in batches:
        task = next(task for task in module.tester.tasks if task.name == batch.task)
        present = [i for i, name in enumerate(task.class_names) if name not in task.absent]
        p = run(weights, batch.inputs, batch.task)[:, present].softmax(-1)
        mean = p.mean(0)
        total = total - (p * p.log()).sum(-1).mean() + module.settings.diversity * (mean * mean.log()).sum()
    total.backward()
    return total.detach(), logits.grad, coefficients.grad


def step(module, batches):
    """The same of the module."""
    loss = module.training_step(batches, 0)
    loss.backward()
    return loss.detach(), module.logits.grad, module.coefficients.grad


def first_batches(data, settings):
    return next(iter(unlabelled(data, settings).train_dataloader()))


def close(mine, theirs, tolerance):
    """Whether two gradients agree, measured by the largest entry."""
    return float((mine - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@pytest.mark.parametrize("start", ["task_arithmetic", "cart"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_one_of_plain_autograd_over_all_tasks(kind, start, tiny_clip, tmp_path):
    (model, data), plain, run = build(kind, tiny_clip, tmp_path)
    diversity = 0.5 if kind == "lora clip" else 0.0
    settings = Adaptation(start, coefficient=0.6, temperature=2.0, batch_size=8, diversity=diversity)
    module = randomised(TestTimeAdaptation(model, settings))
    batches = first_batches(data, settings)
    loss, for_logits, for_coefficients = step(module, batches)
    expected = reference_step(plain, run, module, batches)
    torch.testing.assert_close(loss, expected[0], rtol=1e-5, atol=1e-6)
    assert close(for_logits, expected[1], 1e-4)
    assert close(for_coefficients, expected[2], 1e-4)
    assert expected[1].abs().max() > 1e-5 and not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_a_backbone_in_bfloat16_has_about_the_gradients_of_one_in_float32(tiny_clip):
    settings = Adaptation("cart", coefficient=0.6, temperature=2.0, batch_size=32)
    results = []
    for dtype in ("float32", "bfloat16"):
        model, data = lora_clip(tiny_clip, dtype=dtype)
        module = randomised(TestTimeAdaptation(model, settings))
        results.append(step(module, first_batches(data, settings)))
    assert next(model.model.get_base_model().parameters()).dtype == torch.bfloat16
    for whole, half in zip(*results, strict=True):
        assert half.dtype == torch.float32
        cosine = torch.nn.functional.cosine_similarity(whole.flatten(), half.flatten(), dim=0)
        assert cosine > 0.98 and half.norm() == pytest.approx(float(whole.norm()), rel=0.1)


def test_what_is_not_learned_gets_no_gradient_and_stays(tiny_clip, tmp_path):
    for learn, still, changed in (("masks", "coefficients", "logits"), ("coefficients", "logits", "coefficients")):
        settings = Adaptation(steps=2, batch_size=8, learn=learn)
        built = lora_clip(tiny_clip)
        base = {name: value.clone() for name, value in built[0].state_dict().items()}
        module = adapt(built, tmp_path, settings)
        first = {"logits": module.merge.first_logits(), "coefficients": module.merge.first_coefficients()}
        assert torch.equal(getattr(module, still), first[still])
        assert not torch.equal(getattr(module, changed), first[changed])
        assert base.keys() == built[0].state_dict().keys()
        assert all(torch.equal(value, base[name]) for name, value in built[0].state_dict().items())


def test_entropy_falls(tiny_clip, tmp_path):
    settings = Adaptation(steps=30, batch_size=16, look_every=10, learning_rate=0.02)
    entropies = adapt(lora_clip(tiny_clip), tmp_path, settings).entropies
    assert entropies == sorted(entropies, reverse=True) and entropies[2] < 0.9 * entropies[0]


def test_tasks_without_a_choice_of_classes_are_refused(tiny_clip):
    model, _ = lora_clip(tiny_clip)
    model.tasks = (Task("hue", ("red", "green", "blue"), absent=("green", "blue")), model.tasks[1])
    with pytest.raises(SheetbendError, match=r"task hue: it has one class \(red\), and so no entropy to lower"):
        TestTimeAdaptation(model)
    with pytest.raises(SheetbendError, match="task sst2: it has no head, its answers are words"):
        TestTimeAdaptation(SimpleNamespace(tasks=[families()["flan_t5"]["sst2"]]))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"steps": 0}, "adaptation.steps is 0"),
        ({"batch_size": 0}, "adaptation.batch_size is 0"),
        ({"look_every": 0}, "adaptation.look_every is 0"),
        ({"learning_rate": 0}, "adaptation.learning_rate is 0"),
        ({"learning_rate": math.nan}, "adaptation.learning_rate is nan"),
        ({"betas": (0.9, 1.0)}, "adaptation.betas is 1.0"),
        ({"diversity": -1}, "adaptation.diversity is -1"),
        ({"fraction": 0}, "adaptation.fraction is 0"),
        ({"fraction": 1.5}, "adaptation.fraction is 1.5; give a share"),
        ({"name": "a/b"}, "adaptation.name 'a/b' must name a folder"),
        ({"start": "ties"}, "AdaRank start is 'ties'; known: task_arithmetic, cart, tsv"),
        ({"adapt_on": "tests"}, "adaptation.adapt_on is 'tests'; known: train, val, test"),
        ({"stop": "early"}, "adaptation.stop is 'early'; known: steps, plateau"),
    ],
)
def test_settings_out_of_range_are_one_line(settings, expected):
    with pytest.raises(SheetbendError) as caught:
        Adaptation(**settings)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entropies", "ends"),
    [([], False), ([1.0, 0.9], False), ([1.0, 1.0, 1.0], True), ([1.0, 0.98, 0.97], False), ([1.0, 0.995, 0.98], False),
     ([1.0, 0.5, 0.6, 0.499], True)],
)  # fmt: skip
def test_a_plateau_is_two_windows_in_a_row_that_gain_less_than_a_percent(entropies, ends):
    assert on_plateau(entropies) is ends
