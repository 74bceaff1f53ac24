"""Datasets as tasks: splits, loaders in turn, checks against overlap."""

from datamodules.base import TaskDataModule
from datamodules.label_space import joint_label_space
from datamodules.quickstart import QuickstartDataModule
from datamodules.tasks import ArrayData, Split, Task, TaskBatch

__all__ = ["ArrayData", "QuickstartDataModule", "Split", "Task", "TaskBatch", "TaskDataModule", "joint_label_space"]
