"""Data sets that somebody else made: folders of pictures, tables, and names that lead elsewhere."""

import csv
import gzip
import io
import json
import random
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import yaml
from datasets import Dataset
from PIL import Image

from datamodules.folder import ImageFolderDataModule, ImageSet
from datamodules.images import ImageTransform
from datamodules.sources.layouts import read_idx
from datamodules.text_tables import TextTable, TextTableDataModule
from tests.trust.fuzzing.harness import Sandbox
from tests.trust.fuzzing.kinds import Kind, Target, write
from tests.trust.fuzzing.mutate import mutated_bytes, strange
from tests.trust.fuzzing.yamls import bomb

FORMATS = (".png", ".jpg", ".bmp", ".gif", ".tiff", ".webp", ".ppm")
TRANSFORM = ImageTransform(8)


@cache
def encoded(seed: int, suffix: str = ".png") -> bytes:
    """Return a small picture as the bytes of a file."""
    target = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(target, Image.registered_extensions()[suffix])
    return target.getvalue()


@cache
def png_bomb(width: int, height: int) -> bytes:
    """Return a PNG of a few kilobytes that claims, and holds, this many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer, packed = zlib.compressobj(9), b""
    for _ in range(height):
        packed += packer.compress(bytes(1 + width // 8))
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packed += packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def liar(size: tuple[int, int]) -> bytes:
    """Return a BMP of sixty bytes that claims this many pixels."""
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 60, 0, 0, 54, 40, *size, 1, 24, 0, 0, 0, 0, 0, 0)


def _picture(rng: random.Random) -> bytes:
    """Return something in the place of a picture."""
    match rng.randrange(9):
        case 4:  # one pixel high: what fits into memory, until it is made eight pixels high
            return png_bomb(rng.choice([60_000_000, 2_000_000]), 1)
        case 0:
            return rng.choice([b"", b"\0" * 100, b"GIF89a", b"<svg/>", b"%PDF-1.4", b"%!PS-Adobe-3.0\nquit\n"])
        case 1:
            return png_bomb(*rng.choice([(9_000, 9_000), (12_000, 12_000), (20_000, 20_000)]))
        case 2:
            return liar(rng.choice([(2**30, 2**30), (-1, -1), (0, 0), (100_000, 100_000), (2**31 - 1, 1)]))
        case 3:  # another format than the name says
            return encoded(rng.randrange(1000), rng.choice(FORMATS))
    return mutated_bytes(rng, encoded(rng.randrange(1000), rng.choice(FORMATS)))


def _pictures(rng: random.Random, sandbox: Sandbox) -> Target:
    folder = sandbox.inputs / "pets"
    for seed in range(8):
        write(folder / ("cat" if seed % 2 else "dog") / f"{seed}.png", encoded(seed))
    write(sandbox.outside / "secret.png", encoded(99))
    for _ in range(rng.choice([1, 1, 3])):
        name = rng.choice(["a", "é", "a\nb", "\x1b[2J", "-rf", "a" * 200, "..a", " "]) + rng.choice(FORMATS)
        match rng.randrange(8):
            case 0:
                place = folder / "cat" / name
                target = rng.choice(
                    ["/dev/zero", "/dev/stdin", "nowhere", str(sandbox.outside / "secret.png"), name, "/"]
                )
                place.unlink(missing_ok=True)
                place.symlink_to(target)
            case 1:
                other = folder / rng.choice(["bird", "c\nat", " ", "é"])
                if not other.is_symlink() and not other.exists():
                    other.symlink_to(rng.choice([sandbox.outside, folder, Path("/"), Path("nowhere")]) / ".")
            case 2:
                (folder / rng.choice(["cat", "fish"]) / name).mkdir(parents=True, exist_ok=True)
            case _:
                place = folder / rng.choice(["cat", "dog", "fish"]) / name
                if not place.is_dir():
                    write(place, _picture(rng))
    options = {"class_names": rng.choice([None, None, ["cat", "dog"], {"cat": "c", "dog": "d"}])}

    cache = rng.choice([0, 1])

    def run() -> None:
        module = ImageFolderDataModule(
            {"pets": ImageSet(str(folder), val=0.25, test=0.25, **options)}, image_cache_gb=cache
        )
        module.quiet, module.image_transform = True, TRANSFORM
        module.setup()
        for split in ("train", "val", "test"):
            part = module.split("pets", split)
            part.batch(list(range(len(part))))

    return run


COLUMNS = ("text", "label")


def _table(rng: random.Random, suffix: str) -> bytes:
    rows = [{"text": f"text {i}", "label": ["good", "bad"][i % 2]} for i in range(20)]
    for _ in range(rng.choice([0, 1, 1, 3])):
        value = strange(rng)
        if isinstance(value, str) and len(value) > 5000:
            value = value[:5000]
        row = rng.choice(rows)
        match rng.randrange(4):
            case 0 | 1:
                row[rng.choice(COLUMNS)] = value
            case 2:
                row.pop(rng.choice(COLUMNS), None)
            case _:
                row[str(value)[:50]] = value
    if suffix == ".parquet":
        target = io.BytesIO()
        try:
            Dataset.from_list([{name: str(row.get(name)) for name in COLUMNS} for row in rows]).to_parquet(target)
        except UnicodeEncodeError:
            return b""
        return mutated_bytes(rng, target.getvalue())
    if suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in rows)
    else:
        target = io.StringIO()
        writer = csv.writer(target, delimiter="\t" if suffix == ".tsv" else ",")
        writer.writerow(rng.choice([COLUMNS, COLUMNS, COLUMNS, ("text", "text"), ("a",), (), ("label", "text", "x")]))
        for row in rows:
            writer.writerow([str(value) for value in row.values()])
        text = target.getvalue()
    content = text.encode("utf-8", "surrogatepass")
    match rng.randrange(8):
        case 0 | 1:
            return mutated_bytes(rng, content)
        case 2:
            return rng.choice(
                [text.encode("utf-16", "surrogatepass"), b"\xef\xbb\xbf" + content, content + b"\0" * 100]
            )
        case 3:
            return rng.choice([b"", b"\n" * 1000, b'"' + content, content.replace(b"\n", b"\r"), b"," * 100_000])
    return content


def _tables(rng: random.Random, sandbox: Sandbox) -> Target:
    suffix = rng.choice([".csv", ".tsv", ".jsonl", ".parquet", ".json"])
    path = write(sandbox.inputs / f"mood{suffix}", _table(rng, ".jsonl" if suffix == ".json" else suffix))
    if rng.random() < 0.1:
        path.unlink()
        path.symlink_to(rng.choice(["/dev/zero", "/etc/passwd", path.name, "/", str(sandbox.outside / "precious")]))
    names = rng.choice([None, None, None, ["good", "bad"], {"good": "yes", "bad": None}, ["a", "b"]])
    options = {"class_names": names, "group": rng.choice([None, None, "x"])}

    def run() -> None:
        module = TextTableDataModule({"mood": TextTable("text", "label", str(path), **options)})
        module.tasks  # noqa: B018  reads the labels
        for split in ("train", "val", "test"):
            module._read("mood", split)

    return run


def _cards(rng: random.Random, sandbox: Sandbox) -> Target:
    """A folder as from the hub, whose README.md says which files are whose."""
    folder = sandbox.inputs / "mood"
    write(folder / "train.csv", b"text,label\n" + b"".join(b"text %d,%d\n" % (i, i % 2) for i in range(20)))
    files = rng.choice(
        [
            "train.csv",
            "../../outside/*",
            f"{sandbox.outside}/precious",
            "**/*",
            "../**",
            "/etc/passwd",
            "[",
            "{a,b}" * 9,
        ]
    )
    odd = rng.choice(
        [files, [files], {"split": "train", "path": files}, [{"split": "train", "path": files}], strange(rng)]
    )
    configs = rng.choice([[{"config_name": "default", "data_files": odd}], strange(rng), {"default": odd}])
    text = yaml.safe_dump({"configs": configs, "dataset_info": strange(rng)}, allow_unicode=True)
    if rng.random() < 0.1:
        text = bomb() + text
    if rng.random() < 0.1:
        text += f"x: !!python/object/apply:os.system ['touch {sandbox.canary}']\n"
    write(folder / "README.md", f"---\n{text}---\n# Mood\n".encode("utf-8", "surrogatepass"))
    if rng.random() < 0.2:
        write(folder / "mood.py", f"open({str(sandbox.canary)!r}, 'w')".encode())
        write(folder / "dataset_infos.json", json.dumps(strange(rng)).encode())
    if rng.random() < 0.15:
        name = rng.choice(["state.json", "dataset_dict.json"])
        write(folder / name, json.dumps(rng.choice([strange(rng), {"splits": ["train", "../x"]}])).encode())

    def run() -> None:
        table = TextTable("text", "label", str(folder), splits={"train": "train"})
        module = TextTableDataModule({"mood": table})
        module.tasks  # noqa: B018  reads the labels
        module._read("mood", "train")

    return run


def _idx(rng: random.Random, sandbox: Sandbox) -> Target:
    """The files of MNIST, whose header claims the sizes."""
    header = b"\0\0\x08" + bytes([rng.choice([3, 3, 0, 1, 255])])
    sizes = [rng.choice([2, 8, 8, 0, 2**32 - 1, 2**31, 10**6]) for _ in range(header[3] % 8)]
    content = header + b"".join(struct.pack(">I", size) for size in sizes) + bytes(rng.choice([0, 128, 500]))
    if rng.random() < 0.5:
        content = mutated_bytes(rng, b"\0\0\x08\x03" + struct.pack(">III", 2, 8, 8) + bytes(128))
    path = sandbox.inputs / rng.choice(["images-idx3-ubyte", "images-idx3-ubyte.gz"])
    if path.suffix == ".gz":
        content = rng.choice([gzip.compress(content), mutated_bytes(rng, gzip.compress(content)), content])
    write(path, content)
    return lambda: read_idx(path)


KINDS = (
    Kind("pictures", "folders of pictures: damage, bombs, lying sizes, links", 1000, 30, _pictures, 60),
    Kind("tables", "CSV, TSV, JSON lines and parquet", 1000, 15, _tables, 60),
    Kind("cards", "folders as from the hub, whose card names the files", 400, 10, _cards, 60),
    Kind("idx", "files of MNIST whose header lies", 400, 20, _idx),
)
