"""Tiny text models on disk, and tasks of made-up sentences that they learn in a few steps."""

import numpy as np
import pyarrow as pa
import torch
from lightning.pytorch import Trainer
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, GPT2Config, LlamaConfig, RobertaConfig

from datamodules import Task
from datamodules.text import TextDataModule, Texts
from lightning_modules import LoRA
from lightning_modules.sequence_classifier import SequenceClassifier
from mergers.seeding import derive_generator
from tests.text_stand_ins import WORDS, word_tokenizer

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VOCABULARY = {"vocab_size": len(WORDS) + 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, **VOCABULARY, num_key_value_heads=1, max_position_embeddings=64),
    "bert": BertConfig(**SIZES, **VOCABULARY, max_position_embeddings=64),
    "roberta": RobertaConfig(**SIZES, **VOCABULARY, max_position_embeddings=64),
    "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **VOCABULARY),
}
TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "bert": ["query", "value"],
    "roberta": ["query", "value", "dense"],  # the head has a `dense` too
    "gpt2": ["c_attn", "attn.c_proj"],
}
CLASSES = ("yes", "maybe", "no")
TASKS = {
    # The first text of a pair says the class; the second is noise.
    "animals": (Task("animals", CLASSES, label_set="nli"), ("dog", "cat", "man")),
    "verbs": (Task("verbs", CLASSES, label_set="nli", absent=("maybe",)), ("runs", "", "sleeps")),
    "places": (Task("places", ("inside", "outside")), ("inside", "outside")),
}


def save_model(kind, folder, seed=0, tokenizer=None, labels=2, **changes):
    """Write a random model of ``kind`` with its tokenizer to ``folder``; return its path."""
    config = CONFIGS[kind].__class__(**{**CONFIGS[kind].to_dict(), "num_labels": labels, **changes})
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.25)
    model.save_pretrained(folder)
    (tokenizer or word_tokenizer(types=kind == "bert")).save_pretrained(folder)
    return str(folder)


class Sentences(TextDataModule):
    """Pairs of texts of a few words, of which one says the class."""

    def __init__(self, tasks, batch_size=16, eval_batch_size=32, batches_per_epoch=None, num_workers=0, seed=None):
        super().__init__(tasks, batch_size, eval_batch_size, batches_per_epoch, num_workers, seed)

    @classmethod
    def known_tasks(cls):
        return {name: entry[0] for name, entry in TASKS.items()}

    def load(self, task):
        return self.tokenized(task, {name: sentences(task, name) for name in ("train", "val", "test")}, None)


def sentences(task, split, size=96):
    declared, words = TASKS[task]
    generator = derive_generator("sentences", task, split)

    def draw(number):
        return int(torch.randint(number, (1,), generator=generator))

    present = [i for i, name in enumerate(declared.class_names) if name not in declared.absent]
    labels = np.array([present[draw(len(present))] for _ in range(size)])
    noise = ["a", "b", "c", "d", "e", "f", "g", "h", "good", "bad"]
    columns = [[], []]
    for label in labels:
        first, second = ([noise[draw(10)] for _ in range(3 + draw(4))] for _ in range(2))
        columns[0].append(" ".join([words[label]] * 4 + first))
        columns[1].append(" ".join(second))
    return Texts(tuple(pa.chunked_array([pa.array(column, pa.large_string())]) for column in columns), labels)


FLAGS = ("max_epochs", "precision", "enable_checkpointing", "accumulate_grad_batches")


def module(folder, **arguments):
    kind = next(kind for kind in CONFIGS if kind in folder.rpartition("/")[2])
    lora = LoRA(r=4, dropout=0.1, target_modules=TARGETS[kind])
    return SequenceClassifier(folder, **{"lora": lora, "learning_rate": 1e-2, "warmup_steps": 3, **arguments})


def fit(folder, root, tasks, callbacks=(), data=None, ckpt_path=None, **arguments):
    flags = {"max_epochs": 3, "num_sanity_val_steps": 0, "enable_checkpointing": False, "gradient_clip_val": 0.5}
    flags |= {name: arguments.pop(name) for name in list(arguments) if name in FLAGS}
    model = module(folder, **arguments)
    trainer = Trainer(default_root_dir=root, callbacks=list(callbacks), **{**QUIET, **flags})
    trainer.fit(model, Sentences(tasks, **(data or {})), ckpt_path=ckpt_path, weights_only=True)
    return model


def batch(tasks=("animals",), size=8, tokenizer=None):
    """Inputs and labels of the first test examples."""
    data = Sentences(list(tasks))
    data._tokenizer = tokenizer or word_tokenizer()
    data.setup()
    return data.split(tasks[0], "test").batch(list(range(size)))
