import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torchmetrics.classification import MulticlassAccuracy

from datamodules import Task
from datamodules.label_space import JointLabels
from lightning_modules.metrics import METRICS, Evaluator, Share, found
from mergers import SheetbendError


def hits(logits, labels, k):
    return (logits.argsort(dim=1, descending=True)[:, :k] == labels[:, None]).any(1).sum().item()


def task(name, classes, **settings):
    return Task(name, tuple(f"class {i}" for i in range(classes)), **settings)


def joint(columns, size):
    return JointLabels(tuple(("all", str(i)) for i in range(size)), columns)


def test_scores_equal_a_plain_count():
    generator = torch.Generator().manual_seed(0)
    columns = {"a": (0, 1, 2), "b": (3, 4, 5, 6, 7)}
    evaluator = Evaluator([task("a", 3), task("b", 5)], {"joint": joint(columns, 8)})
    expected, counts = {}, {"a": 0, "b": 0}
    for name, size in [("a", 7), ("b", 4), ("a", 5)]:
        classes = len(columns[name])
        logits, pooled = (
            torch.randn(size, classes, generator=generator),
            torch.randn(size, 8, generator=generator),
        )
        labels = torch.randint(classes, (size,), generator=generator)
        evaluator.update("ties", name, logits, {"joint": pooled}, labels)
        counts[name] += size
        joint_labels = torch.tensor(columns[name])[labels]
        for metric, value in [
            ("accuracy", hits(logits, labels, 1)),
            *[(f"joint_hits@{k}", hits(pooled, joint_labels, k)) for k in (1, 3, 5)],
        ]:
            expected[name, metric] = expected.get((name, metric), 0) + value
    scores = {(score.task, score.metric): score for score in evaluator.scores()}
    for (name, metric), value in expected.items():
        assert scores[name, metric].value == pytest.approx(value / counts[name])
        assert scores[name, metric].count == counts[name]
    for k in (1, 3, 5):
        pooled = expected["a", f"joint_hits@{k}"] + expected["b", f"joint_hits@{k}"]
        assert scores["all", f"joint_hits@{k}"].value == pytest.approx(pooled / 16)
        assert scores["all", f"joint_hits@{k}"].count == 16
    assert ("all", "accuracy") not in scores


@pytest.mark.parametrize("ties", [False, True])
def test_hits_are_those_of_torchmetrics_to_the_bit(ties):
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(90, 20, generator=generator)
    if ties:
        scores[:, 10:] = scores[:, :10]  # classes of equal prompts
        scores[3:6] = torch.nan  # of a model that has diverged
    labels = torch.randint(20, (90,), generator=generator)
    for k in (1, 3, 5, 10):
        theirs, ours = MulticlassAccuracy(20, top_k=k, average="micro", validate_args=False), Share()
        for rows in torch.arange(90).split(37):
            theirs.update(scores[rows], labels[rows])
            ours.update(found(scores[rows], labels[rows], k))
        assert torch.equal(ours.compute(), theirs.compute()) and 0 < ours.compute() < 1


@pytest.mark.parametrize(
    ("metric", "classes", "reference"),
    [
        ("accuracy", 3, accuracy_score),
        ("matthews", 2, matthews_corrcoef),
        ("matthews", 4, matthews_corrcoef),
        ("accuracy_and_f1", 2, lambda true, made: (accuracy_score(true, made) + f1_score(true, made)) / 2),
    ],
)
def test_each_metric_equals_that_of_scikit_learn(metric, classes, reference):
    generator = torch.Generator().manual_seed(classes)
    evaluator = Evaluator([task("a", classes, metric=metric)])
    logits = torch.randn(60, classes, generator=generator)
    labels = torch.randint(classes, (60,), generator=generator)
    for rows in torch.arange(60).split(17):
        evaluator.update("finetuned", "a", logits[rows], {}, labels[rows])
    scores = evaluator.scores()
    assert scores[0].metric == metric  # the one that stands for the task comes first
    assert scores[0].value == pytest.approx(reference(labels.numpy(), logits.argmax(1).numpy()), abs=1e-6)
    assert scores[-1].metric == "accuracy"
    assert scores[-1].value == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    assert all(score.count == 60 for score in scores)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("predicted", [0, 1, None])
@pytest.mark.parametrize("true", [0, 1, None])
@pytest.mark.filterwarnings("ignore:A single label was found")  # scikit-learn's, of what is meant here
def test_matthews_of_one_class_is_that_of_scikit_learn(classes, predicted, true):
    """A collapsed merge says one class always; that is no correlation."""
    generator = torch.Generator().manual_seed(1)
    made, labels = (
        torch.randint(classes, (40,), generator=generator) if one is None else torch.full((40,), one)
        for one in (predicted, true)
    )
    evaluator = Evaluator([task("a", classes, metric="matthews")])
    evaluator.update("x", "a", torch.nn.functional.one_hot(made, classes).float(), {}, labels)
    expected = matthews_corrcoef(labels.numpy(), made.numpy())
    assert evaluator.scores()[0].value == pytest.approx(expected, abs=1e-6)


def test_a_metric_that_does_not_fit_is_refused():
    with pytest.raises(SheetbendError, match=r"task a: unknown metric 'rouge'; known: accuracy, matthews"):
        Evaluator([task("a", 3, metric="rouge")])
    with pytest.raises(SheetbendError, match="accuracy_and_f1 is for two classes, the task has 3"):
        Evaluator([task("a", 3, metric="accuracy_and_f1")])
    assert set(METRICS) == {"accuracy", "matthews", "accuracy_and_f1"}


def test_hits_at_k_is_left_out_where_it_would_be_certain():
    evaluator = Evaluator([task("a", 3)], {"joint": joint({"a": (0, 1, 2)}, 3)})
    evaluator.update("x", "a", torch.eye(3), {"joint": torch.eye(3)}, torch.arange(3))
    assert {score.metric for score in evaluator.scores()} == {"accuracy", "joint_hits@1"}


def test_a_variant_may_be_measured_in_joint_spaces_alone():
    evaluator = Evaluator([task("a", 2)], {"joint": joint({"a": (2, 0)}, 3)})
    evaluator.update("ensemble", "a", None, {"joint": torch.eye(3)[[2, 0, 1]]}, torch.tensor([0, 1, 1]))
    assert [(s.task, s.metric, round(s.value, 4)) for s in evaluator.scores()] == [
        ("a", "joint_hits@1", 0.6667),
        ("all", "joint_hits@1", 0.6667),
    ]


def test_reset_forgets():
    evaluator = Evaluator([task("a", 2)])
    evaluator.update("x", "a", torch.eye(2), {}, torch.tensor([1, 0]))
    evaluator.reset()
    evaluator.update("x", "a", torch.eye(2), {}, torch.tensor([0, 1]))
    assert [(score.value, score.count) for score in evaluator.scores()] == [(1.0, 2)]
