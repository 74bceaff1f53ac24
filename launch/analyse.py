"""``python launch/analyse.py KIND --config FILE`` is ``sheetbend analyse KIND --config FILE`` from a clone."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch.cli import program  # noqa: E402  the path comes first

if __name__ == "__main__":
    program(["analyse", *sys.argv[1:]])
