"""What the published experiments need, made small: backbones, data in the hub's format, published weights."""

import json
from pathlib import Path

import torch
from datasets import ClassLabel, Dataset, Features, Value
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    CLIPVisionModel,
)

from datamodules.generation_tasks import families
from datamodules.glue import GLUE_TASKS
from datamodules.nli import NLI_TASKS
from datamodules.vision_tasks import VISION_TASKS
from tests.datamodules.pictures_on_disk import parquet
from tests.generation_stand_ins import declared_table, save_tiny_llama, save_tiny_t5, write_split
from tests.lightning_modules.text_backbones import save_model
from tests.text_stand_ins import WORDS

COUNT = 20  # examples of a split
TINY_CLIP = str(Path(__file__).resolve().parents[1] / "lightning_modules" / "base_models" / "tiny-clip")


def write_images(root, task):
    """An image task as its hub copy: parquet by split, with named classes."""
    entry = VISION_TASKS[task]
    names = entry.task.class_names
    splits = {split: [i % len(names) for i in range(COUNT)] for split in entry.splits.values() if split}
    parquet(root / task, splits, None if entry.label_names else names, entry.image_column, entry.label_column)


def write_nli(root, task):
    """A task of natural language inference as the first copy that its declaration names."""
    declared = NLI_TASKS[task]
    source = declared.sources[0]
    codes = range(len(declared.codes))
    for split in set(source.splits.values()):
        rows = [_texts(source.columns, split, i) | {"label": i % len(codes)} for i in range(COUNT)]
        folder = root / task
        folder.mkdir(parents=True, exist_ok=True)
        if source.hub.name.startswith("SetFit/"):  # jsonl with the label's number and its words
            words = [json.dumps(row | {"label_text": declared.codes[row["label"]]}) for row in rows]
            (folder / f"{split}.jsonl").write_text("\n".join(words))
        else:
            _to_parquet(folder, split, rows, source.columns, declared.codes)


def write_glue(root, task):
    """A GLUE task as nyu-mll/glue has it."""
    declared = GLUE_TASKS[task]
    source = declared.sources[0]
    for split in set(source.splits.values()):
        rows = [_texts(source.columns, split, i) | {"label": i % len(declared.codes)} for i in range(COUNT)]
        _to_parquet(root / task, split, rows, source.columns, declared.task.class_names)


def write_generation(family):
    """What writes a task of ``family`` as its declared source has it."""

    def write(root, task):
        declared = families()[family][task]
        for split in filter(None, declared.splits.values()):
            columns, features = declared_table(declared, COUNT, split)
            write_split(root / task, split, columns, features)

    return write


def _texts(columns, split, i):
    return {name: f"{WORDS[i % len(WORDS)]} {split} {WORDS[(i // 3) % len(WORDS)]} {name} {i}" for name in columns}


def _to_parquet(folder, split, rows, columns, names):
    folder.mkdir(parents=True, exist_ok=True)
    features = Features({name: Value("string") for name in columns} | {"label": ClassLabel(names=list(names))})
    Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


# Backbones. Texts of the prompts are of no matter: what is tested is that everything fits together.


def small_backbones(folder, tiny_clip):
    """A tiny model of the kind of each published backbone, by the name of the configuration of the model."""
    llama, t5 = save_tiny_llama(folder / "chat-llama", WORDS), save_tiny_t5(folder / "t5", WORDS)
    return {
        "clip_vit_b32": tiny_clip,
        "clip_vit_l14": tiny_clip,
        "llama3_8b": save_model("llama", folder / "llama", num_key_value_heads=2),
        "flan_t5_large": t5,
        "llama3_2_3b_instruct": llama,
        "mistral_7b_instruct": llama,
        "roberta_base": save_model("roberta", folder / "roberta"),
        "gpt2": save_model("gpt2", folder / "gpt2"),
    }


# Published weights, in the formats in which they are published.

LOADERS = {
    "clip_vit_b32": CLIPVisionModel,
    "clip_vit_l14": CLIPVisionModel,
    "llama3_8b": AutoModelForSequenceClassification,
    "flan_t5_large": AutoModelForSeq2SeqLM,
    "llama3_2_3b_instruct": AutoModelForCausalLM,
    "mistral_7b_instruct": AutoModelForCausalLM,
    "roberta_base": AutoModelForSequenceClassification,
    "gpt2": AutoModelForSequenceClassification,
}


def write_adapter(name, backbone, targets, folder):
    """A PEFT folder of random LoRA on ``targets`` of a small backbone."""
    model = LOADERS[name].from_pretrained(backbone)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)


def write_checkpoint(name, backbone, targets, folder, labels=None, pickled=False):
    """A whole model whose ``targets`` differ from the backbone's, with a head of ``labels`` classes."""
    resized = {"num_labels": labels, "ignore_mismatched_sizes": True}
    model = LOADERS[name].from_pretrained(backbone, **({} if labels is None else resized))
    torch.manual_seed(len(str(folder)))
    for module, layer in model.named_modules():
        if module.rpartition(".")[2] in targets:
            layer.weight.data += 0.05 * torch.randn_like(layer.weight)
    model.save_pretrained(folder)
    if pickled:  # as transformers wrote it before safetensors
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()


def write_heads(path, tasks, width):
    """KnOTS's heads.pt: a map from task to (3, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.save({task: torch.randn(3, width) for task in tasks}, path)
