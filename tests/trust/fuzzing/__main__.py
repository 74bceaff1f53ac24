"""Try hostile inputs and print a table: ``python -m tests.trust.fuzzing [KIND ...] [--inputs N] [--only NUMBER]``."""

import argparse
import os
import tempfile
import time
import warnings
from pathlib import Path

import torch

from tests.trust.fuzzing.harness import ACCEPTED, CRASHED, REJECTED, sandbox_of
from tests.trust.fuzzing.kinds import all_kinds

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> None:
    """Run the kinds that are named, or all."""
    kinds = all_kinds()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(kinds))
    parser.add_argument("--inputs", type=int, help="of each kind; by default as many as the slow tests try")
    parser.add_argument("--only", type=int, help="one input, by its number")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("| kind | what | tried | accepted | rejected | crashed | seconds |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    total = {ACCEPTED: 0, REJECTED: 0, CRASHED: 0}
    for name in options.kinds or kinds:
        kind, counts, said, began = kinds[name], {ACCEPTED: 0, REJECTED: 0, CRASHED: 0}, [], time.perf_counter()
        numbers = range(options.inputs or kind.count) if options.only is None else [options.only]
        with tempfile.TemporaryDirectory() as folder, sandbox_of(Path(folder)) as sandbox:
            for number, outcome in kind.outcomes(sandbox, numbers):
                counts[outcome.verdict] += 1
                if outcome.verdict == CRASHED or options.only is not None:
                    said.append(f"  {name} {number}: {outcome.verdict}: {outcome.said}")
        cells = [str(sum(counts.values())), *map(str, counts.values()), f"{time.perf_counter() - began:.0f}"]
        print(f"| {name} | {kind.what} | {' | '.join(cells)} |", *said, sep="\n", flush=True)
        total = {verdict: total[verdict] + counts[verdict] for verdict in total}
    print(f"| all | | {sum(total.values())} | {' | '.join(map(str, total.values()))} | |")


if __name__ == "__main__":
    main()
