"""What merges coordinates of several tasks into one; a class listed here is found by its name."""

from mergers.methods.cart import Cart
from mergers.methods.iso_cts import IsoCTS
from mergers.methods.mean import Mean
from mergers.methods.metagpt import MetaGPT
from mergers.methods.tall_masks import TallMasks
from mergers.methods.task_arithmetic import TaskArithmetic
from mergers.methods.ties import Ties
from mergers.methods.tsv import TSV
from mergers.methods.wudi import Wudi

__all__ = ["TSV", "Cart", "IsoCTS", "Mean", "MetaGPT", "TallMasks", "TaskArithmetic", "Ties", "Wudi"]
