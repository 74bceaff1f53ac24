"""``python launch/merge.py ...`` is ``sheetbend merge ...`` from a clone."""

import sys

# Before anything else is imported: files beside this one have names that the standard library has too.
sys.path[0] = __file__.replace("\\", "/").rpartition("/")[0].rpartition("/")[0]

from launch.cli import program  # noqa: E402  the path comes first

if __name__ == "__main__":
    program(["merge", *sys.argv[1:]])
