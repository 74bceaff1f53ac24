"""``python -m launch`` is ``sheetbend``."""

from launch.cli import program

if __name__ == "__main__":
    program()
