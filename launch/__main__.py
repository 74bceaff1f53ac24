"""``python -m launch`` is ``sheetbend``."""

from launch.cli import main

if __name__ == "__main__":
    main()
