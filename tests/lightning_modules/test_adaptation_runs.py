"""Adaptations by the Trainer: interrupted and resumed, under its flags, in two processes, stopped on a plateau."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision

from lightning_modules import Adaptation, LoRA, TestTimeAdaptation
from mergers import SheetbendError
from tests.lightning_modules.adapting import adapt, assert_same_state, full_clip, given, lora_clip, state
from tests.stand_ins import TASKS, StandIns

SETTINGS = Adaptation(steps=10, batch_size=8, look_every=4, learning_rate=0.02)


def kept(folder):
    """Checkpoints in the middle of windows of four steps, and at their ends."""
    options = {"save_top_k": -1, "filename": "{step}", "auto_insert_metric_name": False}
    ends = ModelCheckpoint(folder, save_on_train_epoch_end=True, every_n_epochs=1, **options)
    return [ModelCheckpoint(folder, every_n_train_steps=3, **options), ends]


def adam(module):
    """The optimiser's state, flat."""
    return [value for entry in module.trainer.optimizers[0].state_dict()["state"].values() for value in entry.values()]


def test_a_resumed_adaptation_is_the_uninterrupted_one_with_workers_or_without(tiny_clip, tmp_path):
    whole = adapt(lora_clip(tiny_clip), tmp_path, SETTINGS, kept(tmp_path / "checkpoints"), enable_checkpointing=True)
    assert whole.trainer.global_step == 10 and len(whole.entropies) == 3
    assert (whole.logits > 0).any() and (whole.logits < 0).any() and len(adam(whole)) == 6
    for step, workers in ((3, 0), (6, 2), (8, 0)):  # in the middle of windows, and at the end of one
        data = StandIns(["hue", "shade"], num_workers=workers)
        checkpoint = tmp_path / "checkpoints" / f"{step}.ckpt"
        resumed = adapt(lora_clip(tiny_clip, data=data), tmp_path, SETTINGS, ckpt_path=checkpoint)
        assert_same_state(whole, resumed)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(adam(resumed), adam(whole), strict=True))
    done = tmp_path / "done.ckpt"
    whole.trainer.save_checkpoint(done)
    assert_same_state(whole, adapt(lora_clip(tiny_clip), tmp_path, SETTINGS, ckpt_path=done))


def test_a_checkpoint_of_other_adapters_is_refused(tiny_clip, tmp_path):
    whole = adapt(lora_clip(tiny_clip), tmp_path, SETTINGS, enable_checkpointing=True)
    path = tmp_path / "one.ckpt"
    whole.trainer.save_checkpoint(path)
    for built, settings, expected in [
        (lora_clip(tiny_clip, seed=1), SETTINGS, "checkpoint is of other adapters: that of hue has changed since"),
        (lora_clip(tiny_clip, ["shade", "hue"]), SETTINGS, "its tasks or modules differ"),
        (lora_clip(tiny_clip, lora=LoRA(r=3)), SETTINGS, "its logits are"),
    ]:
        with pytest.raises(SheetbendError, match=expected):
            adapt(built, tmp_path, settings, ckpt_path=path)
    with pytest.raises(SheetbendError, match=r"devices \(1 there, 2 now\); give --trainer\.devices 1"):
        whole.check(torch.load(path), processes=2)


def test_a_checkpoint_is_of_these_adapters_whatever_the_precision_makes_of_the_base(tiny_clip, tmp_path):
    flags = {"enable_checkpointing": True, "precision": "bf16-true"}
    adapted = adapt(full_clip(tiny_clip, tmp_path), tmp_path, SETTINGS, **flags)
    adapted.trainer.save_checkpoint(tmp_path / "one.ckpt")
    model, _ = given(tiny_clip, {task: tmp_path / task for task in ("hue", "shade")})
    TestTimeAdaptation(model, SETTINGS).check(torch.load(tmp_path / "one.ckpt"))


class Gradients(Callback):
    """Keeps the gradients of each step of the optimiser, as it had them."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step > len(self.seen):
            self.seen.append({name: getattr(pl_module, name).grad.clone() for name in state(pl_module)})


def test_accumulated_gradients_are_the_mean_of_their_batches(tiny_clip, tmp_path):
    still = Adaptation(steps=4, batch_size=8, look_every=2, learning_rate=1e-30)
    one, two = Gradients(), Gradients()
    adapt(lora_clip(tiny_clip), tmp_path, still, [one])
    module = adapt(lora_clip(tiny_clip), tmp_path, still, [two], accumulate_grad_batches=2)
    assert len(one.seen) == len(two.seen) == module.trainer.global_step == 4
    assert module.trainer.current_epoch == 2  # windows are counted in steps of the optimiser
    for step in range(2):
        for name, gradient in two.seen[step].items():
            mean = (one.seen[2 * step][name] + one.seen[2 * step + 1][name]) / 2
            torch.testing.assert_close(gradient, mean, rtol=1e-4, atol=1e-8)


def test_clipping_clips_the_gradient_over_all_tasks(tiny_clip, tmp_path):
    norms = []
    for flags in ({}, {"gradient_clip_val": 1e-3}):
        gradients = Gradients()
        adapt(lora_clip(tiny_clip), tmp_path, Adaptation(steps=1, batch_size=8), [gradients], **flags)
        norms.append(torch.cat([gradient.flatten() for gradient in gradients.seen[0].values()]).norm())
    assert norms[0] > 1e-2
    torch.testing.assert_close(norms[1], torch.tensor(1e-3), rtol=1e-3, atol=0)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_lower_precision_learns_about_the_same(tiny_clip, tmp_path, precision):
    settings = Adaptation(steps=4, batch_size=16, look_every=2, learning_rate=0.02)
    whole = adapt(lora_clip(tiny_clip), tmp_path, settings)
    lower = adapt(lora_clip(tiny_clip), tmp_path, settings, precision=precision)
    assert lower.logits.dtype == lower.coefficients.dtype == torch.float32
    assert lower.entropies == pytest.approx(whole.entropies, rel=0.02) and lower.entropies != whole.entropies
    torch.testing.assert_close(lower.coefficients, whole.coefficients, rtol=0, atol=0.02)


def test_gradients_too_small_for_float16_are_scaled_on_their_way_through_the_model(tiny_clip, tmp_path):
    seen = {}
    for name, plugins in (
        ("whole", []),
        ("half", [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**20))]),
    ):
        gradients = Gradients()
        built = lora_clip(tiny_clip, logit_scale=1e-3)  # answers that hardly differ, so that the entropy hardly falls
        adapt(built, tmp_path, Adaptation(steps=1, batch_size=8), [gradients], plugins=plugins)
        seen[name] = gradients.seen[0]
    for name, gradient in seen["whole"].items():
        half = seen["half"][name]
        assert half.dtype == torch.float32 and 0 < gradient.abs().max() < 1e-5
        assert (half - gradient).abs().max() < 0.05 * gradient.abs().max(), name


def test_other_flags_of_the_trainer(tiny_clip, tmp_path):
    settings = Adaptation(steps=10**6, batch_size=8, look_every=5)
    tried = adapt(lora_clip(tiny_clip), tmp_path, settings, fast_dev_run=True)
    assert tried.trainer.global_step == 1
    short = adapt(lora_clip(tiny_clip), tmp_path, settings, max_time={"milliseconds": 500}, limit_val_batches=0)
    assert 0 < short.trainer.global_step < 10**6 and short.entropies and not short.scores()
    seen = adapt(lora_clip(tiny_clip), tmp_path, Adaptation(steps=2, look_every=2), limit_val_batches=1)
    assert {(score.task, score.metric): score.count for score in seen.scores()}["hue", "accuracy"] == 32


def test_a_plateau_ends_the_run_where_it_stands(tiny_clip, tmp_path):
    """Each window sees the whole split, and nothing changes much: the third is as high as the first."""
    common = {"batch_size": 40, "look_every": 1, "adapt_on": "val", "learning_rate": 1e-6}
    settings = Adaptation(steps=50, stop="plateau", **common)
    stopped = adapt(lora_clip(tiny_clip), tmp_path, settings)
    assert stopped.trainer.global_step == len(stopped.entropies) == 3
    assert_same_state(stopped, adapt(lora_clip(tiny_clip), tmp_path, Adaptation(steps=3, **common)))
    assert not torch.equal(stopped.logits, stopped.merge.first_logits())  # none of the windows is gone back to
    path = tmp_path / "stopped.ckpt"
    stopped.trainer.save_checkpoint(path)
    again = adapt(lora_clip(tiny_clip), tmp_path, settings, ckpt_path=path)
    assert again.trainer.global_step == 3
    assert_same_state(stopped, again)


@pytest.mark.parametrize(
    ("learn", "learning_rate", "expected"),
    [("both", 1e30, "the entropy is nan at step"), ("masks", 3e37, "the sum of the logits is")],
)
def test_a_learning_rate_that_diverges_is_one_line(tiny_clip, tmp_path, learn, learning_rate, expected):
    settings = Adaptation(steps=40, batch_size=8, learn=learn, learning_rate=learning_rate)
    with pytest.raises(SheetbendError, match=f"{expected}.*smaller adaptation.learning_rate than"):
        adapt(lora_clip(tiny_clip), tmp_path, settings)


class Odd(StandIns):
    """One validation example more, so that one of two processes has a batch more."""

    def load(self, task):
        _, make, _ = TASKS[task]
        return super().load(task) | {"val": make(task, "val", 41)}


class Report(Callback):
    """What each process has in the end, in a file of its own."""

    def __init__(self, folder):
        self.folder = folder

    def on_fit_end(self, trainer, pl_module):
        counts = {(score.task, score.metric): (score.count, score.value) for score in pl_module.scores()}
        content = {**state(pl_module), "entropies": pl_module.entropies, "scores": counts}
        torch.save(content, self.folder / f"{trainer.global_rank}.pt")


def test_two_processes_learn_what_one_with_twice_the_batch_learns(tiny_clip, tmp_path):
    results = {}
    for processes, size in ((1, 8), (2, 4)):
        settings = Adaptation(steps=6, batch_size=size, look_every=3, adapt_on="train", learning_rate=0.02)
        built = lora_clip(tiny_clip, ["hue", "tint"], data=Odd(["hue", "tint"], eval_batch_size=20))
        folder = tmp_path / str(processes)
        folder.mkdir()
        flags = {"devices": 2, "strategy": "ddp_fork"} if processes == 2 else {}
        module = adapt(built, folder, settings, [Report(folder)], **flags)
        results[processes] = [torch.load(path) for path in sorted(folder.glob("*.pt"))]
        assert len(results[processes]) == processes
        assert torch.equal(module.logits, results[processes][0]["logits"])  # back in the process that began it
    (one,), (first, second) = results.values()
    for name, value in first.items():
        assert torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name], name
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, one[name], rtol=0, atol=2e-3)
    assert first["entropies"] == pytest.approx(one["entropies"], rel=1e-3)
    assert first["scores"] == {key: (count, pytest.approx(value)) for key, (count, value) in one["scores"].items()}
    assert one["scores"]["hue", "accuracy"][0] == 41
