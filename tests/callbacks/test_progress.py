"""The plain lines of a run without a terminal."""

from types import SimpleNamespace

import pytest

from callbacks.progress import PlainProgress


@pytest.mark.parametrize(
    ("tasks", "batches", "variants", "expected"),
    [
        (["a"], 1, ["x"], ["training 1 task, 1 batch an epoch", "testing 1 variant on a"]),
        (
            ["a", "b"],
            32,
            ["x", "y"],
            ["training 2 tasks in turn, 32 batches an epoch", "testing 2 variants on a, b"],
        ),
    ],
)
def test_numbers_agree_with_their_nouns(tasks, batches, variants, expected, capsys):
    progress = PlainProgress()
    trainer = SimpleNamespace(is_global_zero=True, num_training_batches=batches)
    module = SimpleNamespace(task_names=tasks, variants=variants)
    progress._trainer = trainer
    progress.on_train_start(trainer, module)
    progress.on_test_start(trainer, module)
    assert capsys.readouterr().out.splitlines() == expected
