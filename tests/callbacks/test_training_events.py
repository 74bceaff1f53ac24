"""Event files of training: what was logged after the checkpoint is cut off before it is logged again."""

from types import SimpleNamespace

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from callbacks.training_events import KEY, TrainingEvents, cut_off
from tests.trust.snapshots import events


def logged(folder, values, checkpoint=None):
    """Log values from a step on, as one process does; return its checkpoint after the last, or before a kill."""
    logger = TensorBoardLogger(folder, name="tensorboard", version="training", default_hp_metric=False)
    trainer = SimpleNamespace(loggers=[logger, CSVLogger(folder)])
    cut_off(trainer, checkpoint or {})
    saved = {}
    for step, value, save in values:
        logger.log_metrics({"loss": value}, step)
        if save:
            TrainingEvents().on_save_checkpoint(trainer, None, saved)
    logger.experiment.close()
    return saved


def test_each_point_stands_once_after_a_kill_and_nothing_of_a_run_that_begins_again(tmp_path):
    folder = tmp_path / "tensorboard" / "training"
    first = logged(tmp_path, [(0, 0.5, False), (1, 0.25, True), (2, 99.0, False)])
    assert list(first[KEY]) == ["tensorboard"] and len(events(folder)) == 3
    second = logged(tmp_path, [(2, 0.125, False), (3, 0.0, True)], first)
    expected = [("loss", 0, 0.5), ("loss", 1, 0.25), ("loss", 2, 0.125), ("loss", 3, 0.0)]
    assert events(folder) == expected and len(second[KEY]["tensorboard"]) == 2
    logged(tmp_path, [], second)  # finished already
    assert events(folder) == expected
    logged(tmp_path, [(0, 1.0, False)], {"epoch": 1})  # a checkpoint that says nothing of event files
    assert len(events(folder)) == 5
    logged(tmp_path, [(0, 2.0, False)])
    assert events(folder) == [("loss", 0, 2.0)]
