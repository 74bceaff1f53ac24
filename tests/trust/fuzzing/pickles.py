"""Files of torch.save that hold more than tensors, or tensors that are not there."""

import io
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.trust.fuzzing.mutate import mutated_bytes, nested

# Of a file in torch's old format: a number, a version and what the machine was.
_BEFORE_THE_MAP = 137


class Call:
    """Is pickled as a call."""

    def __init__(self, function: Any, *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


def calls(canary: Path) -> list[Call]:
    """Return objects of which a pickle, when it is run, leaves a canary."""
    touch = f"open({str(canary)!r}, 'w').close()"
    return [
        Call(os.system, f"touch {canary}"),
        Call(exec, touch),
        Call(eval, touch),
        Call(open, str(canary), "w"),
        Call(os.mkdir, str(canary)),
        Call(torch.save, torch.zeros(1), str(canary)),
        Call(np.save, str(canary), np.zeros(1)),
        Call(pickle.loads, pickle.dumps(Call(os.system, f"touch {canary}"))),
        Call(__import__, "antigravity"),
        Call(torch.hub.load, str(canary.parent), "anything"),
        Call(torch.jit.load, str(canary)),
    ]


def odd_tensors() -> list[Any]:
    """Return what stands where a tensor should, and tensors without the values that they claim."""
    wide = torch.zeros(4)
    return [
        torch.zeros(1).expand(2, 10**12),
        torch.zeros(1).expand(10**12),
        torch.zeros(2, 3, device="meta"),
        torch.eye(2, 3).to_sparse(),
        torch.eye(2, 3).to_sparse_csr(),
        torch.nn.Parameter(torch.zeros(2, 3)),
        torch.zeros(2, 3, dtype=torch.complex64),
        torch.zeros(2, 3, dtype=torch.float8_e4m3fn),
        torch.zeros(2, 3, dtype=torch.bool),
        torch.full((2, 3), float("nan")),
        torch.zeros(0, 3),
        torch.tensor(1.0),
        wide[1:].as_strided((2, 2), (1, 0)),
        torch.zeros(2, 3).numpy(),
        torch.Size([2, 3]),
        OrderedDict(a=torch.zeros(2)),
        None,
        1,
        "a",
        b"a",
        [torch.zeros(2, 3)],
        nested(50),
        {"a": {"b": torch.zeros(1)}},
        torch.device("cpu"),
        torch.float32,
        {1, 2},
    ]


def odd_keys() -> list[Any]:
    """Return keys that are no names of tensors."""
    return [1, None, ("a", "b"), 1.5, b"a", "", "\0", "a\nb", "../x", "x" * 10_000, True, "base_model.model..", "💥"]


def hash_bomb(depth: int) -> bytes:
    """Return a pickle of a map whose key is a pair of pairs of pairs ..., which takes 2 ** depth steps to hash."""
    twice = b"".join(pickle.BINPUT + bytes([n]) + pickle.BINGET + bytes([n]) + pickle.TUPLE2 for n in range(depth))
    return pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.EMPTY_TUPLE + twice + pickle.NONE + pickle.SETITEM + b"."


def zipped(parts: dict[str, bytes], compress: bool = False) -> bytes:
    """Return a zip archive as torch.save writes it."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, content in parts.items():
            part = zipfile.ZipInfo(f"archive/{name}")  # of a date that is always the same
            part.compress_type = archive.compression
            archive.writestr(part, content)
    return target.getvalue()


def unzipped(content: bytes) -> dict[str, bytes]:
    """Return the parts of an archive of torch.save."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def saved(content: Any, legacy: bool = False) -> bytes:
    """Return what torch.save writes."""
    target = io.BytesIO()
    torch.save(content, target, _use_new_zipfile_serialization=not legacy)
    return target.getvalue()


def mutated_pickle(rng: random.Random, tensors: dict[str, Any], canary: Path) -> bytes:
    """Return a file of torch.save with code, odd tensors, odd names or damage in it."""
    content: Any = dict(tensors)
    name, legacy = rng.choice(list(content)), rng.random() < 0.3
    match rng.randrange(11):
        case 0:
            content[name] = rng.choice(calls(canary))
        case 1:
            content = rng.choice([*calls(canary), [content], content[name], None, 3, ()])
        case 2 | 3:
            content[name] = rng.choice(odd_tensors())
        case 4:
            content[rng.choice(odd_keys())] = content.pop(name)
        case 5:
            return pickle.dumps(rng.choice([*calls(canary), content, hash_bomb(40)]), protocol=rng.randrange(5))
        case 6:  # opcodes that were never written by a pickler
            parts = unzipped(saved(content))
            parts["data.pkl"] = mutated_bytes(rng, parts["data.pkl"])
            return zipped(parts)
        case 7:
            parts = unzipped(saved(content))
            bomb = rng.choice([hash_bomb(40), b"", b".", b"(" * 100_000, b"]" * 100_000 + b"."])
            match rng.randrange(4):  # readers of archives differ in what they see
                case 0:
                    return saved({}, legacy=True)[:_BEFORE_THE_MAP] + bomb + zipped(parts)
                case 1:
                    parts["DATA.PKL"] = bomb
                    del parts["data.pkl"]
                    return zipped(parts)
                case 2:
                    return zipped({"data.pkl": bomb, "version": b"3"}) + zipped(parts)
                case _:
                    return zipped(parts | {"data.pkl": bomb})
        case 8:  # numbers inside the pickle: sizes, offsets and strides of tensors
            parts = unzipped(saved(content))
            parts["data.pkl"] = _with_other_numbers(rng, parts["data.pkl"])
            return zipped(parts, compress=rng.random() < 0.2)
        case 9:
            parts = unzipped(saved(content))
            part = rng.choice(list(parts))
            parts[part] = rng.choice([b"", b"\0" * 50_000_000, mutated_bytes(rng, parts[part]), b"\xff" * 16])
            parts = {rng.choice([key, f"../{key}"]): value for key, value in parts.items()}
            return zipped(parts, compress=True)
        case _:
            return mutated_bytes(rng, saved(content, legacy))
    try:
        return saved(content, legacy)
    except (NotImplementedError, RuntimeError, pickle.PicklingError):  # of some tensors in the old format
        return saved(content)


def _with_other_numbers(rng: random.Random, content: bytes) -> bytes:
    """Return a pickle with some of its small whole numbers replaced."""
    data, places = bytearray(), [n for n in range(len(content) - 1) if content[n : n + 1] == pickle.BININT1]
    chosen = set(rng.sample(places, min(len(places), rng.choice([1, 2, 4]))))
    for n, byte in enumerate(content):
        if n in chosen:
            big = rng.choice([10**12, -1, 2**62, 2**31, 0, 7])
            data += pickle.LONG1 + bytes([8]) + struct.pack("<q", big)
        elif n - 1 not in chosen:
            data.append(byte)
    return bytes(data)
