"""Adapter folders, pickles and checkpoints that somebody else made, read by the library and by the commands."""

import json
import random
import shutil
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save

from mergers import Merger, load_adapter, load_difference, save_merged
from mergers.adapters.differences import stored_tensors
from tests.trust.fuzzing.harness import Sandbox, command
from tests.trust.fuzzing.kinds import Kind, Target, write
from tests.trust.fuzzing.mutate import REGEX_BOMB, as_json, mutated_bytes, mutated_safetensors, mutated_tree, strange
from tests.trust.fuzzing.pickles import mutated_pickle

MODULES = ("layers.0.q_proj", "layers.1.q_proj")
CONFIG = {
    "peft_type": "LORA",
    "task_type": None,
    "base_model_name_or_path": "org/base",
    "revision": None,
    "r": 2,
    "lora_alpha": 4,
    "rank_pattern": {},
    "alpha_pattern": {"layers.1.q_proj": 2},
    "target_modules": ["q_proj"],
    "exclude_modules": None,
    "modules_to_save": None,
    "layers_to_transform": None,
    "layers_pattern": None,
    "bias": "none",
    "fan_in_fan_out": False,
    "use_rslora": False,
    "use_dora": False,
    "init_lora_weights": True,
    "inference_mode": True,
    "lora_dropout": 0.1,
    "auto_mapping": None,
    "peft_version": "0.19.0",
}


@cache
def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the weights of a small adapter."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for module in MODULES:
        found[f"base_model.model.{module}.lora_A.weight"] = torch.randn(2, 3, generator=generator)
        found[f"base_model.model.{module}.lora_B.weight"] = torch.randn(4, 2, generator=generator)
    return found


@cache
def weights(seed: int = 0) -> bytes:
    """Return them as a safetensors file."""
    return save(tensors(seed))


def honest(folder: Path, seed: int = 1) -> Path:
    """Write an adapter folder with nothing wrong about it."""
    write(folder / "adapter_config.json", json.dumps(CONFIG).encode())
    write(folder / "adapter_model.safetensors", weights(seed))
    return folder


def read(rng: random.Random, sandbox: Sandbox, source: Path) -> Target:
    """Return what reads an adapter: mostly the library, now and then a command that also writes."""
    other, output = honest(sandbox.inputs / "cars"), sandbox.output / "merged"
    match rng.randrange(12):
        case 0:
            return command("inspect", source, other, "--quiet", "--json", sandbox.output / "found.json")
        case 1:
            return command("merge", "--adapters", source, other, "--output", output, "--quiet")
        case 2:
            options = ("--space", "knots", "--method", "ties", "--missing", "zero", "--same-base")
            return command("merge", "--adapters", source, other, "--output", output, *options)
        case 3:
            return lambda: save_merged(Merger("full", "ties"), [load_adapter(source), load_adapter(other)], output, 2)
        case 4:
            return lambda: load_adapter(source).save(output) if hasattr(load_adapter(source), "save") else None
    return lambda: load_adapter(source)


def _headers(rng: random.Random, sandbox: Sandbox) -> Target:
    folder = honest(sandbox.inputs / "pets", 0)
    write(folder / "adapter_model.safetensors", mutated_safetensors(rng, weights()))
    return read(rng, sandbox, folder)


def _configs(rng: random.Random, sandbox: Sandbox) -> Target:
    folder = honest(sandbox.inputs / "pets", 0)
    tree = mutated_tree(rng, CONFIG, str(sandbox.outside))
    if rng.random() < 0.3 and isinstance(tree, dict):  # the patterns are where a name meets a regular expression
        field = rng.choice(["rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "layers_pattern"])
        value = strange(rng)
        tree[field] = {value if isinstance(value, str) else REGEX_BOMB: 2} if "_pattern" in field else value
        long = {key.replace("layers.0", "a" * 40): value for key, value in tensors().items()}
        write(folder / "adapter_model.safetensors", save(long))
    write(folder / "adapter_config.json", as_json(rng, tree))
    return read(rng, sandbox, folder)


def _pickles(rng: random.Random, sandbox: Sandbox) -> Target:
    content = mutated_pickle(rng, tensors(), sandbox.canary)
    match rng.randrange(4):
        case 0:
            return read(rng, sandbox, write(sandbox.inputs / "pets.pt", _published(rng, sandbox)))
        case 1:
            folder = honest(sandbox.inputs / "pets", 0)
            write(folder / "heads.pt", content)
            return read(rng, sandbox, folder)
        case 2:
            path = write(sandbox.inputs / rng.choice(["model.pt", "model.pth", "model.bin"]), content)
            return lambda: [each.read() for each in stored_tensors(path).values()]
    folder = honest(sandbox.inputs / "pets", 0)
    (folder / "adapter_model.safetensors").unlink()
    write(folder / "adapter_model.bin", content)
    return read(rng, sandbox, folder)


def _published(rng: random.Random, sandbox: Sandbox) -> bytes:
    renamed = {key.replace(".weight", ".default.weight"): value for key, value in tensors().items()}
    return mutated_pickle(rng, renamed, sandbox.canary)


def _heads(rng: random.Random, sandbox: Sandbox) -> Target:
    folder = honest(sandbox.inputs / "pets", 0)
    content = save({"score.weight": torch.ones(3, 4), "score.bias": torch.zeros(3)})
    write(folder / "head.safetensors", mutated_safetensors(rng, content))
    if rng.random() < 0.3:
        write(folder / "adapter_config.json", json.dumps({**CONFIG, "modules_to_save": strange(rng)}).encode())
    return read(rng, sandbox, folder)


BASE = {"embed.weight": (5, 4), "layers.0.q.weight": (4, 4), "norm.weight": (4,), "steps": ()}


@cache
def _checkpoint(seed: int, keys: tuple[str, ...] = tuple(BASE)) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    return save({key: torch.randn(BASE[key], generator=generator) for key in keys})


def _checkpoints(rng: random.Random, sandbox: Sandbox) -> Target:
    base, tuned = sandbox.inputs / "base", sandbox.inputs / "tuned"
    write(base / "model.safetensors", _checkpoint(0))
    write(base / "config.json", b"{}")
    if rng.random() < 0.5:
        write(tuned / "model.safetensors", mutated_safetensors(rng, _checkpoint(1)))
    else:
        keys = tuple(BASE)
        parts = {"model-1.safetensors": keys[:2], "model-2.safetensors": keys[2:]}
        for name, its in parts.items():
            write(tuned / name, _checkpoint(1, its))
        places = {"metadata": {}, "weight_map": {key: name for name, its in parts.items() for key in its}}
        if rng.random() < 0.2:
            shutil.move(tuned / "model-2.safetensors", sandbox.inputs / "model-2.safetensors")
            places["weight_map"]["steps"] = rng.choice(
                ["../model-2.safetensors", f"{sandbox.inputs}/model-2.safetensors"]
            )
        write(tuned / "model.safetensors.index.json", as_json(rng, mutated_tree(rng, places, str(sandbox.outside))))
    match rng.randrange(4):
        case 0:
            return command(
                "merge", "--adapters", base, "--base", tuned, "--into", tuned, "--output", sandbox.output / "m"
            )
        case 1:
            words = ("--adapters", honest(sandbox.inputs / "cars"), "--into", tuned, "--output", sandbox.output / "m")
            return command("merge", *words)
    return lambda: [update.load() for update in load_difference(tuned, base).values()]


_OPTIONS = (
    *("--space", "--method", "--transforms", "--finish", "--coefficients", "--rank", "--dtype", "--device", "--names"),
    *("--method.density", "--into", "--base", "--modules", "--output", "--seeds", "--config", "--preset", "--for-task"),
    *("--missing", "--same-base", "--dry-run", "--cache", "--overwrite", "--space.concatenate", "--finish.rank"),
)


def _words(rng: random.Random, sandbox: Sandbox) -> Target:
    """Words of the command line, as a script would pass them on that takes them from a stranger."""
    pets, cars = honest(sandbox.inputs / "pets", 0), honest(sandbox.inputs / "cars")
    words: list[object] = ["--adapters", pets, cars, "--output", sandbox.output / "merged", "--quiet"]
    for _ in range(rng.choice([1, 1, 2, 3])):
        value = strange(rng, str(sandbox.outside))
        value = rng.choice([value, "knots", "ties", "0.3", "2", "pets=1", "none", "mean", "float16", "Dare", "0"])
        if isinstance(value, list | dict) or len(str(value)) > 5000:
            value = json.dumps(value)[:5000] if not isinstance(value, str) else value[:5000]
        word = str(value).replace("\0", "").encode("utf-8", "replace").decode()
        words += [rng.choice(_OPTIONS), word]
    if "--output" in words[4:]:  # where the user himself says to write is no fault of the input
        words = words[: 4 + words[4:].index("--output")]
    return command("merge", *words)


def _folders(rng: random.Random, sandbox: Sandbox) -> Target:
    """Folders whose files are links, folders, pipes, empty, unreadable or far too many."""
    folder = honest(sandbox.inputs / "pets", 0)
    name = rng.choice(["adapter_config.json", "adapter_model.safetensors", "head.safetensors", "heads.pt"])
    (folder / name).unlink(missing_ok=True)
    targets = [
        sandbox.outside / "precious",
        "/dev/zero",
        "/dev/urandom",
        "/proc/self/mem",
        "/",
        ".",
        name,
        "../nowhere",
    ]
    match rng.randrange(6):
        case 0 | 1:
            (folder / name).symlink_to(rng.choice([*targets, "/dev/stdin", "/proc/self/environ", "/etc"]))
        case 2:
            (folder / name).mkdir()
        case 3:
            import os

            os.mkfifo(folder / name)
        case 4:
            write(
                folder / name, rng.choice([b"", b"\0", b"version https://git-lfs.github.com/spec/v1\n", b"{}", b"PK"])
            )
        case _:
            write(folder / name, mutated_bytes(rng, rng.choice([weights(), json.dumps(CONFIG).encode()])))
    if rng.random() < 0.3:
        for odd in ("modeling_evil.py", "__init__.py", "setup.py", "config.json"):
            write(folder / odd, f"open({str(sandbox.canary)!r}, 'w').close()".encode())
    return read(rng, sandbox, folder)


KINDS = (
    Kind("safetensors", "headers and values of adapter weights", 4000, 150, _headers),
    Kind("adapter-config", "adapter_config.json", 3000, 100, _configs),
    Kind("pickles", ".bin, .pt, heads.pt and checkpoints of torch.save", 1500, 60, _pickles),
    Kind("heads", "head.safetensors and modules_to_save", 600, 30, _heads),
    Kind("checkpoints", "full models, their shards and index", 1000, 40, _checkpoints),
    Kind("folders", "links, pipes, folders and devices in the place of files", 400, 30, _folders),
    Kind("words", "options of sheetbend merge", 800, 20, _words),
)
