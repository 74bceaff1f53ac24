"""Lightning's Trainer with the verbs that the command line has beside its own."""

from typing import Any

from lightning.pytorch import Trainer


class SheetbendTrainer(Trainer):
    """Lightning's Trainer; it also adapts, searches, analyses. What a verb does is said by `launch.lightning_cli`."""

    def adapt(self, model: Any, datamodule: Any = None, ckpt_path: str | None = None) -> None:
        """Learn a merge on unlabelled data, then test every variant."""
        self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)

    # A configuration that `fit` has written says that it had no checkpoint, and every verb reads it.

    def search(self, model: Any, datamodule: Any = None, ckpt_path: str | None = None) -> None:
        """Find the best settings of merges on validation data, then test them once."""
        self.validate(model, datamodule=datamodule)

    def analyse(self, model: Any, datamodule: Any = None, ckpt_path: str | None = None) -> None:
        """Draw what merging does to adapters, and why."""
        self.test(model, datamodule=datamodule)
