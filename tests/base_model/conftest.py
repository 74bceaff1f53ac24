import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # base_model is a tool of the repository and is not installed
    sys.path.insert(0, str(ROOT))
