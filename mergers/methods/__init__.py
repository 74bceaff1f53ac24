"""What merges coordinates of several tasks into one; a class listed here is found by its name."""

from mergers.methods.mean import Mean
from mergers.methods.task_arithmetic import TaskArithmetic
from mergers.methods.ties import Ties

__all__ = ["Mean", "TaskArithmetic", "Ties"]
