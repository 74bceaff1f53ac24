"""Tables in the hub's layout for the generation tasks, and a T5 and a Llama of some thousand weights that read them."""

import random
import re
from types import SimpleNamespace

import torch
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from datamodules.generation_tasks import families
from datamodules.prompts import prompt_fields

CHAT = (
    "{% for message in messages %}<s> user {{ date_string }} {{ message['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)
MOODS = {"positive": ("fine", "lovely"), "negative": ("dull", "awful")}
FILLERS = ("a", "story", "with", "many", "words", "and", "some", "more")


def word_tokenizer(texts, chat=True, ends=False):
    """A tokenizer with one token a word of ``texts``; ``ends`` writes </s> after every text, as T5's does."""
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text)})
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(special + words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)
    if chat:
        fast.chat_template = CHAT
    return fast


def prepared(tokenizer, architecture, max_length=None):
    """What `GenerationDataModule.attach` takes from a model."""
    return SimpleNamespace(tokenizer=tokenizer, architecture=architecture, max_length=max_length)


def write_split(folder, split, columns, features=None):
    """Write one split as the hub's parquet files are named."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features=features).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


def declared_table(task, size, seed):
    """Rows as the data set of a declared task has them: its columns, and answers of their type."""
    generator = random.Random(seed)
    columns = {
        name: [[f"end {i} {seed}", "other"] if name == "endings" else f"{name} {seed} {i}" for i in range(size)]
        for name in prompt_fields(task.prompt)
    }
    types = {name: Sequence(Value("string")) if name == "endings" else Value("string") for name in columns}
    keys = sorted(task.labels)
    chosen = [generator.randrange(len(keys) or 1) if i >= len(keys) else i for i in range(size)]
    if task.answer == "output":
        words = [task.labels[keys[i]][0] if keys else f"answer {i}" for i in chosen]
        endings = " At home." if task.scoring == "letter" else ""
        columns["output"], types["output"] = [[word + endings] for word in words], Sequence(Value("string"))
        columns["id"], types["id"] = [str(i) for i in range(size)], Value("string")
    elif task.scoring == "number":
        columns["label"], types["label"] = [generator.random() * 5 for _ in range(size)], Value("float32")
    elif task.answer == "answer":
        columns["answer"], types["answer"] = [bool(i) for i in chosen], Value("bool")
    elif task.name == "hella":
        columns["label"], types["label"] = [keys[i] for i in chosen], Value("string")
    else:
        columns["label"], types["label"] = chosen, ClassLabel(names=[f"name {key}" for key in keys])
    return columns, Features(types)


def moods(split, size):
    """Sentences whose mood one word tells."""
    generator = random.Random(split)
    sentences, labels = [], []
    for _ in range(size):
        label = generator.randrange(2)
        words = generator.choices(FILLERS, k=generator.randrange(2, 7))
        words.insert(generator.randrange(len(words)), generator.choice(list(MOODS.values())[1 - label]))
        sentences.append(" ".join(words))
        labels.append(label)
    return sentences, labels


def learnable(root, family):
    """Write two tasks of ``family`` that a word decides, sst2 and another; return their names and all words used."""
    other = {"flan_t5": "imdb", "llama_instruct": "cola"}[family]
    texts = []
    for name in ("sst2", other):
        task = families()[family][name]
        column = prompt_fields(task.prompt)[0]
        for split, size in (("train", 240), (task.splits["test"], 40)):
            sentences, labels = moods(f"{name} {split}", size)
            features = Features({column: Value("string"), "label": ClassLabel(names=["no", "yes"])})
            write_split(root / name, split, {column: sentences, "label": labels}, features)
        texts += [task.prompt, *(word for words in task.words for word in words)]
    words = [*FILLERS, *(word for pair in MOODS.values() for word in pair), "user", "assistant"]
    return ["sst2", other], [*texts, *words]


def save_tiny_t5(folder, texts):
    """A T5 of random weights and its tokenizer; return the folder's name."""
    tokenizer = word_tokenizer(texts, chat=False, ends=True)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0,
        pad_token_id=0, eos_token_id=2, decoder_start_token_id=0, tie_word_embeddings=False, initializer_factor=1.0,
    )  # fmt: skip
    return _save(T5ForConditionalGeneration(config), tokenizer, folder)


def save_tiny_llama(folder, texts):
    """A Llama of random weights and its tokenizer with a chat template; return the folder's name."""
    tokenizer = word_tokenizer(texts)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return _save(LlamaForCausalLM(config), tokenizer, folder)


def _save(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
