"""Models with made-up adapters or full checkpoints, and short adaptations of them."""

import torch
from lightning.pytorch import Trainer
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, CLIPVisionModelWithProjection

from datamodules import UnlabelledBatches
from lightning_modules import ImageClassifier, LoRA, SequenceClassifier, TestTimeAdaptation
from lightning_modules.adapter_folders import write_adapter
from tests.lightning_modules.image_models import open_clip_model, save_open_clip
from tests.lightning_modules.text_backbones import TARGETS, Sentences, save_model
from tests.stand_ins import StandIns

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "max_epochs": -1,
}


def with_adapters(model, data, scale=0.3, seed=0):
    """Build ``model`` on ``data``, with adapters that do something."""
    data.attach(model)
    data.setup()
    model.build(data.tasks, data=data)
    generator = torch.Generator().manual_seed(seed)
    for task in model.task_names:
        for parameter in model.task_parameters(task).values():
            nn.init.normal_(parameter, std=scale, generator=generator)
    return model, data


def lora_clip(folder, tasks=("hue", "shade"), data=None, seed=0, **arguments):
    """A tiny CLIP with an adapter a task."""
    model = ImageClassifier(folder, **{"lora": LoRA(r=2, dropout=0.5), "logit_scale": 10.0, **arguments})
    return with_adapters(model, data or StandIns(list(tasks)), seed=seed)


def perturbed(model, seed, scale=0.05):
    """Change every weight a little, as full fine-tuning does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def given(backbone, adapters, kind=ImageClassifier, data=StandIns):
    """Build a model of ``kind`` with adapters or checkpoints on disk, by task."""
    model, data = kind(backbone, adapters={task: str(path) for task, path in adapters.items()}), data(list(adapters))
    data.attach(model)
    data.setup()
    model.build(data.tasks, fresh=False, data=data)
    return model, data


def full_clip(folder, root, tasks=("hue", "shade")):
    """A tiny CLIP with a full checkpoint a task."""
    for seed, task in enumerate(tasks):
        perturbed(CLIPVisionModelWithProjection.from_pretrained(folder), seed).save_pretrained(root / task)
    return given(folder, {task: root / task for task in tasks})


def full_open_clip(root, tasks=("hue", "shade")):
    """The vision tower of open_clip with a file of weights a task."""
    for seed, task in enumerate(tasks):
        weights = perturbed(open_clip_model().visual, seed).state_dict()
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, root / f"{task}.safetensors")
    return given(save_open_clip(root / "tiny"), {task: root / f"{task}.safetensors" for task in tasks})


def mixed_clip(folder, root):
    """A tiny CLIP with an adapter for one task, and a full checkpoint for another."""
    model, _ = lora_clip(folder, ["hue"])
    write_adapter(model.model, "hue", root / "hue", {}, {})
    perturbed(CLIPVisionModelWithProjection.from_pretrained(folder), 1).save_pretrained(root / "shade")
    return given(folder, {task: root / task for task in ("hue", "shade")})


def lora_open_clip(root):
    """open_clip's CLIP with adapters on its fused attention."""
    lora = LoRA(r=2, dropout=0.5, target_modules=["attn"])
    return lora_clip(save_open_clip(root / "tiny"), lora=lora)


def lora_text(kind, root, tasks=("animals", "verbs")):
    """A tiny text model with an adapter and a head a task."""
    lora = LoRA(r=2, dropout=0.5, target_modules=TARGETS[kind])
    return with_adapters(SequenceClassifier(save_model(kind, root / kind), lora=lora), Sentences(list(tasks)))


def full_text(kind, root, tasks=("animals", "verbs")):
    """A tiny text model with a full checkpoint a task, head included."""
    backbone = save_model(kind, root / kind)
    for seed, task in enumerate(tasks):
        model = AutoModelForSequenceClassification.from_pretrained(save_model(kind, root / f"{kind}-{task}", labels=3))
        perturbed(model, seed).save_pretrained(root / task)
    return given(backbone, {task: root / task for task in tasks}, SequenceClassifier, Sentences)


def randomised(module, seed=0):
    """Give ``module`` masks of either kind and coefficients that all differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        module.logits.copy_(torch.randn(module.logits.shape, generator=generator))
        module.coefficients.add_(0.2 * torch.rand(module.coefficients.shape, generator=generator))
    return module


def unlabelled(data, settings, seed=0):
    """The batches of an adaptation."""
    split, fraction, size = settings.adapt_on, settings.fraction, settings.batch_size
    return UnlabelledBatches(data, split, fraction, size, settings.window, seed, settings.caveats)


def adapt(built, root, settings, callbacks=(), ckpt_path=None, **flags):
    """Adapt what `lora_clip` and its like have built; return the module."""
    model, data = built
    module = TestTimeAdaptation(model, settings)
    options = {**QUIET, "max_steps": settings.steps, **flags}
    trainer = Trainer(default_root_dir=root, callbacks=list(callbacks), **options)
    trainer.fit(module, unlabelled(data, settings), ckpt_path=ckpt_path, weights_only=True)
    return module


def state(module):
    """What an adaptation has learned, and what it has seen."""
    return {"logits": module.logits.detach(), "coefficients": module.coefficients.detach()}


def assert_same_state(one, other):
    """Check that both have learned and seen the same, to the byte."""
    for name, value in state(one).items():
        assert torch.equal(value, state(other)[name]), name
    assert one.entropies == other.entropies
