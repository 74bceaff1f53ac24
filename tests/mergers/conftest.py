import sys
from pathlib import Path

# reference.py and builders.py are imported by name; importlib mode puts no test folder on the path.
sys.path.append(str(Path(__file__).parent))
