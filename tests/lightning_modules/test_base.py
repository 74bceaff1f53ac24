import json
import math

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import PeftModel
from transformers import CLIPVisionModelWithProjection

from callbacks.adapter_checkpoint import AdapterCheckpoint
from callbacks.merge import MergeCallback
from lightning_modules import LoRA
from lightning_modules.lora import adapter_parameters
from mergers import Merger, SheetbendError, load_adapter
from tests.lightning_modules.training import QUIET, fit, module
from tests.stand_ins import StandIns


def state(model, task):
    return {key: value.detach().clone() for key, value in adapter_parameters(model.model, task).items()}


def assert_same(left, right, **tolerance):
    assert left.keys() == right.keys()
    for key in left:
        torch.testing.assert_close(left[key], right[key], **tolerance)


class LearningRates(Callback):
    def __init__(self):
        self.seen = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        for group in trainer.optimizers[0].param_groups:
            if group["name"] == batch.task and batch.labels is not None:
                self.seen.setdefault(batch.task, []).append(group["lr"])


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"accumulate_grad_batches": 2},
        {"patience": 1, "min_delta": 0.05},
        {"precision": "bf16-mixed"},
        {"data": {"batches_per_epoch": 4}, "lora": LoRA(r={"hue": 2, "tint": 4, "shade": 8}, alpha=8, dropout=0.3)},
    ],
)
def test_training_together_gives_what_separate_runs_give(tiny_clip, tmp_path, arguments):
    rates = LearningRates()
    together = fit(tiny_clip, tmp_path, ["hue", "tint", "shade"], [rates], **arguments)
    for task in ["hue", "tint", "shade"]:
        alone_rates = LearningRates()
        if "lora" in arguments:
            ranks = {"hue": 2, "tint": 4, "shade": 8}
            arguments = {**arguments, "lora": LoRA(r={task: ranks[task]}, alpha=8, dropout=0.3)}
        alone = fit(tiny_clip, tmp_path, [task], [alone_rates], **arguments)
        assert_same(state(together, task), state(alone, task), rtol=1e-6, atol=1e-7)
        assert together.progress[task] == alone.progress[task]
        assert rates.seen[task] == pytest.approx(alone_rates.seen[task])
        # The adapters have really moved, so that equality says something.
        assert max(value.abs().max() for key, value in state(together, task).items() if "lora_B" in key) > 1e-3


def test_each_tasks_learning_rate_warms_up_and_ends_near_zero(tiny_clip, tmp_path):
    rates = LearningRates()
    fit(tiny_clip, tmp_path, ["hue", "tint"], [rates], data={"batches_per_epoch": {"hue": 5, "tint": 2}})
    for task, count in [("hue", 20), ("tint", 8)]:
        seen = rates.seen[task]
        assert len(seen) == count
        assert seen[:3] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2])
        last = (count - 1 - 3) / (count - 3)
        assert seen[-1] == pytest.approx(1e-2 * 0.5 * (1 + math.cos(math.pi * last)))


def test_max_steps_shares_its_budget_and_its_schedule(tiny_clip, tmp_path):
    rates = LearningRates()
    model = fit(tiny_clip, tmp_path, ["hue", "tint"], [rates], data={"batches_per_epoch": 4}, max_steps=11)
    assert {task: progress.steps for task, progress in model.progress.items()} == {"hue": 6, "tint": 5}
    assert rates.seen["tint"][-1] == pytest.approx(1e-2 * 0.5 * (1 + math.cos(math.pi / 2)))


def test_other_tasks_adapters_do_not_move(tiny_clip, tmp_path):
    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.before = {task: state(pl_module, task) for task in pl_module.task_names}

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            for task in pl_module.task_names:
                moved = any((self.before[task][k] != v).any() for k, v in state(pl_module, task).items())
                assert moved == (task == batch.task)

    fit(tiny_clip, tmp_path, ["hue", "shade"], [Watch()], max_epochs=1)


def test_training_leaves_the_global_random_stream_alone(tiny_clip, tmp_path):
    class Draw(Callback):
        def on_train_start(self, trainer, pl_module):
            torch.manual_seed(3)

        def on_train_end(self, trainer, pl_module):
            self.drawn = torch.rand(3)

    draw = Draw()
    fit(tiny_clip, tmp_path, ["hue"], [draw], max_epochs=1)
    torch.manual_seed(3)
    assert torch.equal(draw.drawn, torch.rand(3))


def test_the_seed_changes_initial_values_and_dropout(tiny_clip, tmp_path):
    one, two, three = (fit(tiny_clip, tmp_path, ["hue"], max_epochs=1, seed=seed) for seed in (0, 0, 1))
    assert_same(state(one, "hue"), state(two, "hue"), rtol=0, atol=0)
    assert any((state(one, "hue")[key] != value).any() for key, value in state(three, "hue").items())


def test_dropout_is_on_while_training_and_off_in_tests(tiny_clip, tmp_path):
    without, model = (
        fit(tiny_clip, tmp_path, ["hue"], max_epochs=1, lora=LoRA(r=4, dropout=dropout)) for dropout in (0.0, 0.5)
    )
    assert any((state(without, "hue")[key] != value).any() for key, value in state(model, "hue").items())

    class Mode(Callback):
        def on_test_batch_start(self, trainer, pl_module, *_):
            assert not any(part.training for part in pl_module.model.modules())

    trainer, seen = Trainer(**QUIET, default_root_dir=tmp_path, callbacks=[Mode()]), []
    for _ in range(2):
        trainer.test(model, StandIns(["hue"]), verbose=False)
        seen.append(model.scores())
    assert seen[0] == seen[1]


def test_a_task_without_gain_stops_and_the_others_go_on(tiny_clip, tmp_path):
    class Accuracies(Callback):
        def __init__(self):
            self.history = {}

        def on_validation_end(self, trainer, pl_module):
            for score in pl_module.scores():
                if score.metric == "accuracy":
                    self.history.setdefault(score.task, []).append(score.value)

    accuracies = Accuracies()
    model = fit(tiny_clip, tmp_path, ["hue", "shade"], [accuracies], max_epochs=8, patience=2, min_delta=0.02)
    batches = {task: progress.batches for task, progress in model.progress.items()}
    per_epoch = {"hue": 6, "shade": 5}
    for task, progress in model.progress.items():
        assert progress.best == pytest.approx(max(accuracies.history[task][: batches[task] // per_epoch[task]]))
    assert model.finished_tasks
    assert min(batches[task] / per_epoch[task] for task in batches) < 8


def test_all_tasks_finished_ends_training(tiny_clip, tmp_path):
    model = fit(tiny_clip, tmp_path, ["hue", "shade"], max_epochs=50, patience=1, min_delta=0.5)
    assert set(model.finished_tasks) == {"hue", "shade"}
    assert model.trainer.current_epoch < 10


def test_the_best_adapter_is_kept_in_the_model_and_on_disk(tiny_clip, tmp_path):
    model = fit(tiny_clip, tmp_path, ["hue", "shade"], [AdapterCheckpoint()], max_epochs=5, learning_rate=0.05)
    for task in ["hue", "shade"]:
        folder = tmp_path / "adapters" / task
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["val_accuracy"] == model.progress[task].best
        assert metrics["base_model"] == "test-clip"
        assert set(metrics["splits"]) == {"train", "val", "test"}
        saved, live = load_adapter(folder), model.adapters()[["hue", "shade"].index(task)]
        for name, update in live.items():
            torch.testing.assert_close(saved[name].dense(), update.dense(), rtol=0, atol=0)
    trainer = Trainer(**QUIET, default_root_dir=tmp_path)
    trainer.validate(model, StandIns(["hue", "shade"]), verbose=False)
    for score in model.scores():
        if score.metric == "accuracy":
            assert score.value == pytest.approx(model.progress[score.task].best)


def test_a_saved_adapter_is_what_peft_loads(tiny_clip, tmp_path):
    model = fit(tiny_clip, tmp_path, ["hue"], [AdapterCheckpoint()])
    base = CLIPVisionModelWithProjection.from_pretrained(tiny_clip)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapters" / "hue").eval()
    pixels = torch.randint(0, 255, (5, 3, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        embeds = loaded(pixel_values=(pixels / 255 - 0.5) / 0.5).image_embeds
        model.activate("hue")
        torch.testing.assert_close(model.eval()(pixels), torch.nn.functional.normalize(embeds, dim=-1))
    assert not list((tmp_path / "adapters").glob(".*"))


class StopAfter(Callback):
    """Ends a run as Ctrl-C does, in the middle of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 2:
            raise RuntimeError("stopped")


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tiny_clip, tmp_path):
    arguments = {"data": {"batches_per_epoch": 4}, "enable_checkpointing": True, "max_epochs": 5, "patience": 3}

    def checkpoint(root):
        return ModelCheckpoint(root / "checkpoints", filename="last", enable_version_counter=False)

    tasks, whole, parts = ["hue", "shade"], tmp_path / "whole", tmp_path / "parts"
    uninterrupted = fit(tiny_clip, whole, tasks, [checkpoint(whole)], **arguments)
    with pytest.raises(RuntimeError, match="stopped"):
        fit(tiny_clip, parts, tasks, [checkpoint(parts), StopAfter(2)], **arguments)
    path = parts / "checkpoints" / "last.ckpt"
    resumed = fit(tiny_clip, parts, tasks, [checkpoint(parts)], ckpt_path=path, **arguments)
    assert resumed.progress == uninterrupted.progress
    for task in tasks:
        assert_same(state(resumed, task), state(uninterrupted, task), rtol=0, atol=0)
    # A checkpoint holds adapters, their optimiser state and the best ones; not the base.
    assert path.stat().st_size < 400_000
    assert not any("base_layer" in key for key in torch.load(path, weights_only=True)["state_dict"])
    # And once more: nothing is left to train.
    again = fit(tiny_clip, parts, tasks, [checkpoint(parts)], ckpt_path=path, **arguments)
    assert_same(state(again, "hue"), state(uninterrupted, "hue"), rtol=0, atol=0)
    assert again.progress == uninterrupted.progress


def test_a_checkpoint_of_another_shape_is_refused(tiny_clip, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, filename="last")
    fit(tiny_clip, tmp_path, ["hue"], [checkpoint], enable_checkpointing=True, max_epochs=1)
    for lora in (LoRA(r=3), LoRA(r=4, target_modules=["q_proj"]), LoRA(r=4, target_modules=["q_proj", "fc1"])):
        with pytest.raises(SheetbendError, match="checkpoint does not fit"):
            fit(tiny_clip, tmp_path, ["hue"], ckpt_path=tmp_path / "last.ckpt", max_epochs=1, lora=lora)


class Spoilt(Callback):
    """Makes the last epoch undo what was learned."""

    def on_validation_start(self, trainer, pl_module):
        if trainer.current_epoch == trainer.max_epochs - 1:
            for parameter in pl_module.task_parameters("hue").values():
                parameter.data.zero_()


def test_a_test_of_a_checkpoint_measures_the_best_adapters(tiny_clip, tmp_path):
    callbacks = [Spoilt(), ModelCheckpoint(tmp_path, filename="last"), AdapterCheckpoint()]
    model = fit(tiny_clip, tmp_path, ["hue"], callbacks, enable_checkpointing=True)
    assert model.progress["hue"].best_batches < model.progress["hue"].batches
    trainer, measured = Trainer(**QUIET, default_root_dir=tmp_path), []
    for options in ({}, {"ckpt_path": tmp_path / "last.ckpt", "weights_only": True}):
        again = module(tiny_clip)
        trainer.validate(again, StandIns(["hue"]), verbose=False, **options)
        measured.append(again.scores())
    assert measured[0] == measured[1]


@pytest.mark.parametrize("flags", [{"limit_val_batches": 0}, {"max_steps": 3}])
@pytest.mark.filterwarnings("ignore:task hue. warmup_steps is 3, and the steps in all are 2")
def test_adapters_are_written_without_a_validation_too(tiny_clip, tmp_path, flags):
    model = fit(tiny_clip, tmp_path, ["hue", "shade"], [AdapterCheckpoint()], max_epochs=1, **flags)
    for task, live in zip(["hue", "shade"], model.adapters(), strict=True):
        saved = load_adapter(tmp_path / "adapters" / task)
        for name, update in live.items():
            torch.testing.assert_close(saved[name].dense(), update.dense())
        assert json.loads((tmp_path / "adapters" / task / "metrics.json").read_text())["val_accuracy"] is None


def test_the_schedule_knows_limits(tiny_clip, tmp_path):
    rates = LearningRates()
    data = {"batches_per_epoch": {"hue": 8, "tint": 2}}
    fit(tiny_clip, tmp_path, ["hue", "tint"], [rates], data=data, max_epochs=2, limit_train_batches=0.5)
    # Of ten turns five are left in each epoch: hue, tint, hue, tint, hue.
    assert {task: len(seen) for task, seen in rates.seen.items()} == {"hue": 6, "tint": 4}
    assert rates.seen["hue"][-1] == pytest.approx(1e-2 * 0.5 * (1 + math.cos(math.pi * 2 / 3)))


def test_a_diverged_task_does_not_end_the_others_training(tiny_clip, tmp_path):
    class Diverge(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            next(iter(adapter_parameters(pl_module.model, "hue").values())).data.fill_(float("nan"))

    merge = MergeCallback({"ties": Merger("knots", "ties")})
    with pytest.warns(UserWarning, match="ties is not measured at this validation: adapter hue: module .* holds NaN"):
        model = fit(tiny_clip, tmp_path, ["hue", "shade"], [Diverge(), merge], max_epochs=1)
    assert model.progress["shade"].best > 0


def test_a_checkpoint_of_other_tasks_is_refused(tiny_clip, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, filename="last")
    fit(tiny_clip, tmp_path, ["hue"], [checkpoint], enable_checkpointing=True, max_epochs=1)
    with pytest.raises(SheetbendError, match="holds the tasks hue, this run has shade"):
        fit(tiny_clip, tmp_path, ["shade"], ckpt_path=tmp_path / "last.ckpt", max_epochs=1)


def test_adapters_from_folders_give_the_same_scores(tiny_clip, tmp_path):
    model = fit(tiny_clip, tmp_path, ["hue", "shade"], [AdapterCheckpoint()])
    data, trainer = StandIns(["hue", "shade"]), Trainer(**QUIET, default_root_dir=tmp_path)
    trainer.test(model, data, verbose=False)
    first = model.scores()
    by_run_folder = module(tiny_clip)
    trainer.test(by_run_folder, data, verbose=False)
    assert by_run_folder.scores() == first
    by_name = module(tiny_clip, adapters={task: str(tmp_path / "adapters" / task) for task in ("shade", "hue")})
    trainer.test(by_name, data, verbose=False)
    assert by_name.scores() == first


def test_training_goes_on_from_given_adapters(tiny_clip, tmp_path):
    fit(tiny_clip, tmp_path, ["hue"], [AdapterCheckpoint()])
    started = module(tiny_clip, adapters=str(tmp_path / "adapters"))
    started.build(StandIns(["hue"]).tasks)
    saved = load_adapter(tmp_path / "adapters" / "hue")
    for name, update in started.adapters()[0].items():
        torch.testing.assert_close(update.dense(), saved[name].dense())
    assert all(p.requires_grad for p in adapter_parameters(started.model, "hue").values())


def test_adapters_that_do_not_fit_are_refused_by_name(tiny_clip, tmp_path):
    fit(tiny_clip, tmp_path, ["hue"], [AdapterCheckpoint()], max_epochs=1)
    adapters, tasks = tmp_path / "adapters", StandIns(["hue"]).tasks

    def refuse(source, message, tasks=tasks):
        with pytest.raises(SheetbendError, match=message) as caught:
            module(tiny_clip, adapters=source).build(tasks)
        assert "\n" not in str(caught.value)

    refuse(str(tmp_path), "has no adapter of hue; train first")
    refuse({"shade": "x"}, "adapters name no folder for hue")
    (tmp_path / "empty").mkdir()
    refuse({"hue": str(tmp_path / "empty")}, "empty")
    config = json.loads((adapters / "hue" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "openai/clip-vit-base-patch32"
    (adapters / "hue" / "adapter_config.json").write_text(json.dumps(config))
    refuse(str(adapters), "its base model is openai/clip-vit-base-patch32, this run's is test-clip")


def test_target_modules_that_do_not_exist_are_refused(tiny_clip):
    with pytest.raises(SheetbendError, match=r"lora.target_modules qproj.*end in .*q_proj"):
        module(tiny_clip, lora=LoRA(target_modules=["qproj"])).build(StandIns(["hue"]).tasks)


@pytest.mark.parametrize("settings", [{"r": 0}, {"r": {"hue": -1}}, {"dropout": 1.0}])
def test_lora_settings_that_cannot_be_meant_are_refused(settings):
    with pytest.raises(SheetbendError, match=r"lora\."):
        LoRA(**settings)


def test_no_lora_at_all_is_refused(tiny_clip):
    with pytest.raises(SheetbendError, match=r"model\.lora is None; give .*r: 16.*, or leave it out"):
        module(tiny_clip, lora=None)


def test_a_schedule_needs_a_length(tiny_clip, tmp_path):
    with pytest.raises(SheetbendError, match="max_epochs is -1"):
        fit(tiny_clip, tmp_path, ["hue"], max_epochs=-1)


@pytest.mark.parametrize("name", ["pretrained", "finetuned", "a/b", ".hidden", ""])
def test_names_of_mergers_are_checked(name):
    with pytest.raises(SheetbendError, match="merger"):
        MergeCallback({name: Merger()})


def test_shared_classes_have_the_prompts_of_all_their_tasks(tiny_clip):
    model = module(tiny_clip)
    model.build(StandIns(["hue", "tint", "shade"]).tasks)
    joint = model.joint["joint"]
    assert len(joint) == 5
    assert joint.columns["hue"] == joint.columns["tint"] == (0, 1, 2)
    assert joint.columns["shade"] == (3, 4)
    torch.testing.assert_close(model.joint_head[3:], model.head_shade)
    encode = model.source.text_encoder()
    texts = encode(["a photo of green.", "a green photo.", "green"])
    mean = torch.nn.functional.normalize(texts, dim=-1).mean(0)
    torch.testing.assert_close(model.joint_head[1], mean / mean.norm())
