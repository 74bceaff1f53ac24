"""Mutators: pure functions of a seeded generator and an honest input, which return a hostile one."""

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

REGEX_BOMB = "(a+)+$"


def strange(rng: random.Random, outside: str = "/nowhere") -> Any:
    """Return a value that no honest file has where it is put: another type, an extreme, or a name with a purpose."""
    return rng.choice(_STRANGE)(rng, outside)


def nested(depth: int, value: Any = 0) -> Any:
    """Return a list in a list in a list."""
    for _ in range(depth):
        value = [value]
    return value


def _calls(outside: str) -> dict[str, Any]:
    """Return what would run a command, were it called."""
    return {"class_path": "os.system", "init_args": {"command": f"touch {outside}/canary"}}


_STRANGE: tuple[Callable[[random.Random, str], Any], ...] = (
    lambda rng, _: None,
    lambda rng, _: rng.choice([True, False]),
    lambda rng, _: rng.choice([0, -1, 1, 2, 255, 2**31, 2**63, -(2**63), 2**64, 10**12, 10**30]),
    lambda rng, _: 10 ** rng.choice([100, 400, 4000]),
    lambda rng, _: rng.choice([0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf")]),
    lambda rng, _: rng.choice(["", " ", "\0", "a\nb", "a\rb", "\x1b[2J", "\ud800", "é", "💥" * 50, "a" * 100_000]),
    lambda rng, outside: rng.choice(["..", "../..", "../outside/precious", f"{outside}/precious", "~", "~nobody/x"]),
    lambda rng, outside: rng.choice(["/", "/dev/zero", "/dev/stdin", "/proc/self/mem", outside, "."]),
    lambda rng, _: rng.choice(["nan", "1e999", "0x10", "true", "null", "{task}", "{seed}", "%s", "{0.__class__}"]),
    lambda rng, _: rng.choice([REGEX_BOMB, "(.*)*(.*)*(.*)*x", "[", "(?P<", "\\", "(" * 200, "a{1,100000}" * 5]),
    lambda rng, _: rng.choice(["os.system", "builtins.eval", "subprocess.Popen", "torch.load", "posix.system"]),
    lambda rng, outside: _calls(outside),
    lambda rng, outside: {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", f"{outside}/canary"]}},
    lambda rng, outside: {"class_path": "builtins.exec", "init_args": {"source": f"open('{outside}/canary','w')"}},
    lambda rng, _: rng.choice([[], {}, [[]], [{}], {"": None}, {"a": 1}, [None], ["a"], [1, "a", None]]),
    lambda rng, _: nested(rng.choice([3, 50, 200])),
    lambda rng, _: {"auto_map": {"AutoModel": "evil.Model"}, "trust_remote_code": True},
)


# JSON and whatever else is a tree of maps and lists


def places(tree: Any) -> list[tuple]:
    """Return the keys that lead to every node below the root."""
    found: list[tuple] = []
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        found += [(key,), *((key, *rest) for rest in places(value))]
    return found


def at(tree: Any, keys: tuple) -> Any:
    """Return the node to which ``keys`` lead."""
    for key in keys:
        tree = tree[key]
    return tree


def mutated_tree(rng: random.Random, tree: Any, outside: str = "/nowhere") -> Any:
    """Return the tree with one to three nodes deleted, replaced, renamed, moved, repeated or added."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        known = places(tree)
        if not known:
            return strange(rng, outside)
        keys = rng.choice(known)
        holder, key = at(tree, keys[:-1]), keys[-1]
        match rng.randrange(8):
            case 0:
                del holder[key]
            case 1 | 2 | 3:
                holder[key] = strange(rng, outside)
            case 4:
                holder[key] = copy.deepcopy(at(tree, rng.choice(known)))
            case 5 if isinstance(holder, dict):
                holder[_odd_name(rng)] = holder.pop(key)
            case 5 | 6 if isinstance(holder, list):
                holder[key:key] = [copy.deepcopy(holder[key])] * rng.choice([1, 3])
            case 6:
                holder[_odd_name(rng)] = strange(rng, outside)
            case _:
                holder[key] = rng.choice([[holder[key]], {"a": holder[key]}, str(holder[key])])
    return tree


def _odd_name(rng: random.Random) -> str:
    names = [
        "",
        "x",
        "a.b",
        "..",
        "__class__",
        "class_path",
        "init_args",
        "auto_map",
        "é",
        "a\nb",
        "-",
        "--config",
        "0",
    ]
    return rng.choice([*names, "lora_alpha", "use_dora", "trust_remote_code", "a" * 5000])


def as_json(rng: random.Random, tree: Any) -> bytes:
    """Return a tree as JSON; now and then with a key twice, in another encoding, or damaged."""
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.7, indent=rng.choice([None, 1]))
    if rng.random() < 0.05:
        text = text.replace("{", '{"r": 3, "r": 10000000000, ', 1)
    content = text.encode("utf-8", "surrogatepass")
    match rng.randrange(20):
        case 0:
            return mutated_bytes(rng, content)
        case 1:
            return rng.choice([b"\xef\xbb\xbf" + content, text.encode("utf-16", "surrogatepass"), content + b"\0"])
        case 2:
            depth = rng.choice([1000, 100_000])
            return rng.choice([b"[" * depth, b'{"a":' * depth, b"[" * depth + b"]" * depth, b"1" * 10_000])
    return content


# Bytes


def mutated_bytes(rng: random.Random, content: bytes) -> bytes:
    """Return bytes with some flipped, cut, repeated, inserted or replaced."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        start = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0 if data:
                data[min(start, len(data) - 1)] ^= 1 << rng.randrange(8)
            case 1:
                del data[start:]
            case 2:
                del data[start : start + rng.choice([1, 2, 8, 100])]
            case 3:
                data[start:start] = data[start : start + rng.choice([1, 8, 64])]
            case 4:
                data[start:start] = rng.choice([b"\0", b"\xff" * 8, b"\r\n", rng.randbytes(8), b"\0" * 4096])
            case _:
                data[start : start + 8] = struct.pack("<q", rng.choice([0, -1, 1, 2**31, 2**62, 10**12]))
    return bytes(data)


# safetensors

_ITEM = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def safetensors(entries: dict[str, Any], data: bytes) -> bytes:
    """Return a file of the format, whatever its header says."""
    header = json.dumps(entries).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(header)) + header + data


def mutated_safetensors(rng: random.Random, content: bytes) -> bytes:
    """Return a safetensors file with a header or values that lie."""
    size = struct.unpack("<Q", content[:8])[0]
    entries, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice([key for key in entries if key != "__metadata__"] or [None])
        if name is None or not isinstance(entries[name], dict):
            break
        entry = entries[name]
        match rng.randrange(12):
            case 0:
                return struct.pack("<Q", _odd_length(rng, size)) + content[8:]
            case 1:
                return mutated_bytes(rng, content)
            case 2:
                entry["shape"] = rng.choice(_SHAPES)
            case 3:
                entry["shape"] = rng.choice(_HUGE)
                if rng.random() < 0.5:  # consistent with its own offsets, not with the file
                    entry["data_offsets"] = [0, 4 * 10**12]
            case 4:
                entry["dtype"] = rng.choice(["F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "F4", "X", 3])
            case 5:
                entry["data_offsets"] = _odd_offsets(rng, entry.get("data_offsets"), len(data))
            case 6:
                entries[_odd_key(rng, name)] = entries.pop(name)
            case 7:  # two tensors of the same bytes
                entries[_odd_key(rng, name)] = copy.deepcopy(entry)
            case 8:
                del entries[name]
            case 9:
                return _twice(rng, entries, name, data)
            case 10:
                entries = mutated_tree(rng, entries)
                if not isinstance(entries, dict):
                    break
            case _:
                data = _odd_values(rng, data)
    if rng.random() < 0.1:
        entries["__metadata__"] = rng.choice([strange(rng), {"format": "np"}, {"a": 1}, {"a": "b" * 100_000}])
    try:
        return safetensors(entries, data)
    except (TypeError, ValueError):
        return mutated_bytes(rng, content)


_SHAPES = (
    [],
    [0],
    [1],
    [2, 3],
    [3, 2],
    [-1, 3],
    [2.5, 3],
    ["2", 3],
    [[2, 3]],
    None,
    [2, 3, 1, 1, 1, 1, 1],
    [0, 0],
    [6],
)
_HUGE = ([10**12], [10**6, 10**6], [2, 10**12], [10**12, 2], [2**63], [2**64], [2**32, 2**32], [2**62, 4, 4], [10**30])


def _odd_length(rng: random.Random, size: int) -> int:
    lengths = [0, 1, 7, size - 1, size + 1, size * 2, 10**6, 10**8, 10**9, 10**12, 2**63 - 1, 2**63, 2**64 - 1]
    return rng.choice(lengths)


def _odd_offsets(rng: random.Random, offsets: Any, size: int) -> Any:
    start, end = offsets if isinstance(offsets, list) and len(offsets) == 2 else (0, size)
    if not (isinstance(start, int) and isinstance(end, int)):
        start, end = 0, size
    choices = [[end, start], [-start, end], [start + 1, end + 1], [start, end + 4], [start, 10**12], [0, end - start]]
    return rng.choice([*choices, [2**63, 2**64], [start], [], None, [start, "9"], [0.5, 4.5], [end, end], [size, size]])


def _odd_key(rng: random.Random, name: str) -> str:
    keys = [
        name + " ",
        name.upper(),
        f"../{name}",
        f"/{name}",
        "..",
        "",
        "\0",
        "a\nb",
        name.replace(".", "/"),
        "x" * 9999,
    ]
    module = name.rpartition(".lora_")[0]
    more = [f"{module}.base_layer.weight", f"{module}.lora_magnitude_vector", f"{module}.lora_A.bias", f"{module}.bias"]
    more += [
        name.replace("lora_A", "lora_embedding_A").removesuffix(".weight"),
        name.replace("q", "q" * 3000),
        "a" * 60,
    ]
    return rng.choice([*keys, *more, name.replace("layers", ".."), name.replace("lora_A", "lora_B")])


def _odd_values(rng: random.Random, data: bytes) -> bytes:
    values = [float("nan"), float("inf"), float("-inf"), 1e-45, 3e38, -0.0]
    if rng.random() < 0.2:
        return struct.pack("<f", rng.choice([*values, 0.0])) * (len(data) // 4)
    place = 4 * rng.randrange(max(len(data) // 4, 1))
    return data[:place] + struct.pack("<f", rng.choice(values)) + data[place + 4 :]


def _twice(rng: random.Random, entries: dict[str, Any], name: str, data: bytes) -> bytes:
    """Return a file whose header has one name twice."""
    header = json.dumps(entries)
    again = json.dumps({name: {**entries[name], "shape": rng.choice([*_SHAPES[:4], *_HUGE])}})[1:-1]
    header = (header[:-1] + ", " + again + "}").encode()
    return struct.pack("<Q", len(header)) + header + data
