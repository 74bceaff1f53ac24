import pytest
import torch

from lightning_modules.metrics import Evaluator


def hits(logits, labels, k):
    return (logits.argsort(dim=1, descending=True)[:, :k] == labels[:, None]).any(1).sum().item()


def test_scores_equal_a_plain_count():
    generator = torch.Generator().manual_seed(0)
    columns = {"a": [0, 1, 2], "b": [3, 4, 5, 6, 7]}
    evaluator = Evaluator({"a": 3, "b": 5}, columns, 8)
    expected, counts = {}, {"a": 0, "b": 0}
    for task, size in [("a", 7), ("b", 4), ("a", 5)]:
        classes = len(columns[task])
        logits, joint = (
            torch.randn(size, classes, generator=generator),
            torch.randn(size, 8, generator=generator),
        )
        labels = torch.randint(classes, (size,), generator=generator)
        evaluator.update("ties", task, logits, joint, labels)
        counts[task] += size
        joint_labels = torch.tensor(columns[task])[labels]
        for metric, value in [
            ("accuracy", hits(logits, labels, 1)),
            *[(f"joint_hits@{k}", hits(joint, joint_labels, k)) for k in (1, 3, 5)],
        ]:
            expected[task, metric] = expected.get((task, metric), 0) + value
    scores = {(score.task, score.metric): score for score in evaluator.scores()}
    for (task, metric), value in expected.items():
        assert scores[task, metric].value == pytest.approx(value / counts[task])
        assert scores[task, metric].count == counts[task]
    for k in (1, 3, 5):
        pooled = expected["a", f"joint_hits@{k}"] + expected["b", f"joint_hits@{k}"]
        assert scores["all", f"joint_hits@{k}"].value == pytest.approx(pooled / 16)
        assert scores["all", f"joint_hits@{k}"].count == 16
    assert ("all", "accuracy") not in scores


def test_hits_at_k_is_left_out_where_it_would_be_certain():
    evaluator = Evaluator({"a": 3}, {"a": [0, 1, 2]}, 3)
    evaluator.update("x", "a", torch.eye(3), torch.eye(3), torch.arange(3))
    assert {score.metric for score in evaluator.scores()} == {"accuracy", "joint_hits@1"}


def test_reset_forgets():
    evaluator = Evaluator({"a": 2})
    evaluator.update("x", "a", torch.eye(2), None, torch.tensor([1, 0]))
    evaluator.reset()
    evaluator.update("x", "a", torch.eye(2), None, torch.tensor([0, 1]))
    assert [(score.value, score.count) for score in evaluator.scores()] == [(1.0, 2)]
