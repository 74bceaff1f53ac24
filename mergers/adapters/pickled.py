"""A look at a file of ``torch.save`` before it is read: even an unpickler of tensors can be kept busy for ever."""

import pickletools
import zipfile
from pathlib import Path
from typing import BinaryIO

# Steps that hashing one key may take; names of tensors take one.
_MOST_STEPS = 10**6
# Before version 1.6 torch wrote five pickles one after the other, then the values.
_PICKLES = 5
_MEMO_SETS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_MEMO_GETS = ("GET", "BINGET", "LONG_BINGET")


def reason_to_refuse(path: Path) -> str:
    """Return why the file at ``path`` must not be given to ``torch.load``; empty for one that may.

    Whether it is a file of ``torch.save`` at all is for that to say.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        try:
            if not zipfile.is_zipfile(file):
                file.seek(0)
                return _of_pickles(file, _PICKLES)
            with zipfile.ZipFile(file) as archive:
                for part in archive.infolist():
                    if part.compress_type != zipfile.ZIP_STORED:  # a few bytes may stand for all memory there is
                        return f"{part.filename[:80]!r} in it is compressed, which torch.save never does"
                for part in archive.infolist():
                    if part.filename.endswith(".pkl"):
                        with archive.open(part) as content:
                            if reason := _of_pickles(content, 1):
                                return reason
        except OSError:
            raise
        except Exception:  # what damaged archives and pickles raise is anyone's guess
            return ""
    return ""


def _of_pickles(file: BinaryIO, count: int) -> str:
    for _ in range(count):
        if _widest_tuple(file) > _MOST_STEPS:
            return "it holds tuples of tuples without end"
    return ""


def _widest_tuple(file: BinaryIO) -> int:
    """Return how many entries the widest tuple of a pickle has, tuples in it opened: what it takes to hash it.

    A pickle may name one tuple many times, so that some hundred bytes hold 2 ** 100 entries.
    """
    widest, stack, marks, memo = 0, [], [], {}
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
            widest = max(widest, size)
    return widest
