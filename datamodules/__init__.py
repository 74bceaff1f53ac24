"""Datasets as tasks: splits, loaders in turn, checks against overlap."""

from datamodules.base import TaskDataModule
from datamodules.folder import ImageFolderDataModule, ImageSet
from datamodules.generation import GenerationDataModule
from datamodules.generation_tasks import GenerationTask
from datamodules.glue import GLUEDataModule
from datamodules.label_space import joint_label_space
from datamodules.nli import NLIDataModule
from datamodules.quickstart import QuickstartDataModule
from datamodules.tasks import ArrayData, Split, Task, TaskBatch
from datamodules.text_tables import TextTable, TextTableDataModule
from datamodules.unlabelled import UnlabelledBatches
from datamodules.vision import VisionDataModule

__all__ = [
    "ArrayData",
    "GLUEDataModule",
    "GenerationDataModule",
    "GenerationTask",
    "ImageFolderDataModule",
    "ImageSet",
    "NLIDataModule",
    "QuickstartDataModule",
    "Split",
    "Task",
    "TaskBatch",
    "TaskDataModule",
    "TextTable",
    "TextTableDataModule",
    "UnlabelledBatches",
    "VisionDataModule",
    "joint_label_space",
]
