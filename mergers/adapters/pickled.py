"""A look at a file of ``torch.save`` before it is read: even an unpickler of tensors can be kept busy for ever."""

import os
import pickletools
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import torch

# Steps that hashing one key may take; names of tensors take one.
_MOST_STEPS = 10**6
# Before version 1.6 torch wrote five pickles one after the other, then the values.
_PICKLES = 5
_MEMO_SETS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_MEMO_GETS = ("GET", "BINGET", "LONG_BINGET")
_ARCHIVE = b"PK\x03\x04"
_DAMAGED = "it holds more than tensors, or is damaged"


def reason_to_refuse(path: Path) -> str:
    """Return why the file at ``path`` must not be given to ``torch.load``; empty for one that may.

    An archive is opened by torch's own reader: others may see other parts in a crafted one.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        try:
            if file.read(len(_ARCHIVE)) == _ARCHIVE:  # what torch goes by
                return _of_archive(path, file.seek(0, os.SEEK_END))
            file.seek(0)
            return _of_pickles(file, _PICKLES)
        except OSError:
            raise
        except Exception:  # what damaged archives and pickles raise is anyone's guess
            return _DAMAGED


def _of_archive(path: Path, size: int) -> str:
    reader = torch._C.PyTorchFileReader(str(path))
    size_of = getattr(reader, "get_record_size", lambda name: len(reader.get_record(name)))  # newer than torch 2.6
    if sum(map(size_of, reader.get_all_records())) > size:
        return "it unfolds to more than it is, and torch.save compresses nothing"
    return _of_pickles(BytesIO(reader.get_record("data.pkl")), 1)


def _of_pickles(file: BinaryIO, count: int) -> str:
    for _ in range(count):
        if _has_wide_tuple(file):
            return "it holds tuples of tuples without end"
    return ""


def _has_wide_tuple(file: BinaryIO) -> bool:
    """Return whether some tuple of a pickle has too many entries, tuples in it opened: what it takes to hash it.

    A pickle may name one tuple many times, so that some hundred bytes hold 2 ** 100 entries.
    """
    stack, marks, memo = [], [], {}
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "MARK":
            marks.append(len(stack))
        elif opcode.name in _MEMO_SETS:
            memo[len(memo) if argument is None else argument] = stack[-1] if stack else 1
        elif opcode.name in _MEMO_GETS:
            stack.append(memo.get(argument, 1))
        elif opcode.name == "DUP":
            stack += stack[-1:]
        else:
            count = len(opcode.stack_before)
            if pickletools.markobject in opcode.stack_before:
                start = marks.pop() if marks else 0
                taken = stack[start:]
                del stack[start - opcode.stack_before.index(pickletools.markobject) :]
            else:
                taken = stack[len(stack) - count :] if count else []
                del stack[len(stack) - len(taken) :]
            size = 1 + sum(taken) if "TUPLE" in opcode.name else 1
            stack += [size] * len(opcode.stack_after)
            if size > _MOST_STEPS:  # at once: what follows may be damaged, and unpickling gets there first
                return True
    return False
