import json

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, DistilBertConfig, DistilBertForSequenceClassification

from callbacks.adapter_checkpoint import AdapterCheckpoint
from callbacks.merge import MergeCallback
from lightning_modules import LoRA
from lightning_modules.sequence_classifier import SequenceClassifier
from mergers import SheetbendError, load_adapter
from tests.lightning_modules.text_backbones import (
    CONFIGS,
    QUIET,
    TARGETS,
    TASKS,
    Sentences,
    batch,
    fit,
    module,
    save_model,
)
from tests.text_stand_ins import word_tokenizer

KINDS = list(CONFIGS)
TOGETHER = ["animals", "verbs", "places"]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folder of a tiny model by its kind."""
    root = tmp_path_factory.mktemp("texts")
    return {kind: save_model(kind, root / f"tiny-{kind}") for kind in KINDS}


def state(model, task):
    return {key: value.detach().clone() for key, value in model.task_parameters(task).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_fit_merge_and_test(kind, models, tmp_path):
    model = fit(models[kind], tmp_path, TOGETHER, [AdapterCheckpoint()], max_epochs=8, learning_rate=2e-2)
    before = {task: model.progress[task].best for task in TOGETHER}
    assert min(before.values()) > 0.75
    trainer = Trainer(
        **QUIET,
        default_root_dir=tmp_path,
        callbacks=[MergeCallback({"ties": "ties", "knots": "knots-ties"}, ensemble=False)],
    )
    again = module(models[kind])
    trainer.test(again, Sentences(TOGETHER), verbose=False)
    scores = {(s.variant, s.task): s.value for s in again.scores()}
    assert {variant for variant, _ in scores} == {"pretrained", "finetuned", "ties", "knots"}
    for task in TOGETHER:
        assert scores["finetuned", task] > 0.75
        assert scores["knots", task] >= 0
    trainer.validate(again, Sentences(TOGETHER), verbose=False)
    own = {s.task: s.value for s in again.scores() if s.variant == "finetuned"}
    assert own == pytest.approx(before)  # heads and adapters came back from their folders


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_folder_is_what_peft_loads_head_included(kind, models, tmp_path):
    tasks = ["animals", "places"]
    model = fit(models[kind], tmp_path, tasks, [AdapterCheckpoint()], max_epochs=2).eval()
    inputs, _ = batch(tokenizer=model.tokenizer)
    for task in tasks:
        folder, classes = tmp_path / "adapters" / task, len(TASKS[task][0].class_names)
        assert not (folder / "head.safetensors").exists()
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["task_type"] == "SEQ_CLS" and config["modules_to_save"] == [model.head_name]
        base = AutoModelForSequenceClassification.from_pretrained(
            models[kind], num_labels=classes, ignore_mismatched_sizes=True
        )
        loaded = PeftModel.from_pretrained(base, folder).eval()
        model.activate(task)
        with torch.no_grad():
            expected = loaded(**inputs).logits
            torch.testing.assert_close(model.logits(model(inputs), task), expected, rtol=1e-5, atol=1e-5)
        assert load_adapter(folder).heads.keys() == model.head_tensors(task).keys()


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [("llama", {}), ("bert", {}), ("roberta", {"accumulate_grad_batches": 2}), ("gpt2", {"precision": "bf16-mixed"})],
)
def test_training_together_gives_what_separate_runs_give(kind, arguments, models, tmp_path):
    together = fit(models[kind], tmp_path, TOGETHER, **arguments)
    for task in TOGETHER:
        alone = fit(models[kind], tmp_path, [task], **arguments)
        ours, theirs = state(together, task), state(alone, task)
        assert ours.keys() == theirs.keys() and any(key.startswith(f"head_{task}.") for key in ours)
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-6, atol=1e-7)
        assert together.progress[task] == alone.progress[task]


def test_fresh_heads_depend_on_seed_and_task_alone(models):
    def heads(tasks, **arguments):
        model = module(models["roberta"], **arguments)
        model.build([TASKS[task][0] for task in tasks])
        return {task: model.head_tensors(task)["classifier.dense.weight"] for task in tasks}

    one, two = heads(["animals", "verbs"]), heads(["verbs"])
    assert torch.equal(one["verbs"], two["verbs"])
    assert not torch.equal(one["animals"], one["verbs"])
    assert not torch.equal(heads(["verbs"], seed=1)["verbs"], two["verbs"])


def test_a_class_that_is_absent_is_never_chosen_nor_learned(models, tmp_path):
    model = fit(models["llama"], tmp_path, ["verbs"], max_epochs=1).eval()
    inputs, labels = batch(["verbs"])
    logits = model.task_logits(model(inputs), "verbs")
    assert logits.shape == (8, 3) and torch.isneginf(logits[:, 1]).all()
    loss = model.loss(model(inputs), labels, "verbs")
    present = model.logits(model(inputs), "verbs")[:, [0, 2]]
    torch.testing.assert_close(loss, cross_entropy(present, (labels == 2).long()))
    loss.backward()
    assert (model.get_submodule("head_verbs").weight.grad[1] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind, models):
    """Texts of a padded batch, one by one without padding; decoders take padding on the left too."""
    model = module(models[kind]).eval()
    model.build([TASKS["animals"][0]])
    sides = ("right", "left") if kind in ("llama", "gpt2") else ("right",)
    texts = [("a dog", "b c d e f"), ("a", "b"), ("a b c d e cat", "good")]
    with torch.no_grad():
        alone = torch.cat([model(dict(model.tokenizer(*pair, return_tensors="pt"))) for pair in texts])
        for side in sides:
            model.tokenizer.padding_side = side
            padded = dict(model.tokenizer(*map(list, zip(*texts, strict=True)), padding=True, return_tensors="pt"))
            assert (padded["attention_mask"][:, 0 if side == "left" else -1] == 0).any()
            torch.testing.assert_close(model(padded), alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_what_the_models_own_head_sees(kind, models):
    own = AutoModelForSequenceClassification.from_pretrained(models[kind]).eval()
    model = module(models[kind], heads={"places": models[kind]}).eval()
    model.build([TASKS["places"][0]])
    inputs, _ = batch(tokenizer=model.tokenizer)
    with torch.no_grad():
        features = model(inputs)
        assert features.shape == (8, 16)
        torch.testing.assert_close(model.logits(features, "places"), own(**inputs).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_activations_give_the_same_gradients(kind, models):
    gradients = {}
    for checkpointing in (False, True):
        model = module(models[kind], gradient_checkpointing=checkpointing).train()
        model.build([TASKS["animals"][0]])
        for layer in model.model.modules():  # B is zero at first, and A's gradient with it
            if hasattr(layer, "lora_B"):
                torch.nn.init.constant_(layer.lora_B["animals"].weight, 0.1)
        inputs, labels = batch(tokenizer=model.tokenizer)
        with model._own_random_stream("animals"):  # dropout is on, and drawn again in the backward pass
            loss = model.loss(model(inputs), labels, "animals")
        torch.rand(3)
        loss.backward()
        gradients[checkpointing] = {key: p.grad for key, p in model.task_parameters("animals").items()}
    for key, gradient in gradients[False].items():
        assert gradient.abs().max() > 0, key
        torch.testing.assert_close(gradients[True][key], gradient)


def test_a_bfloat16_backbone_trains_float32_adapters_and_heads(models, tmp_path):
    model = fit(models["llama"], tmp_path, ["animals"], [AdapterCheckpoint()], dtype="bfloat16", max_epochs=4)
    assert {p.dtype for p in model.task_parameters("animals").values()} == {torch.float32}
    frozen = [p for p in model.model.parameters() if not p.requires_grad]
    assert {p.dtype for p in frozen} == {torch.bfloat16}
    assert model.progress["animals"].best > 0.8
    assert {value.dtype for value in load_adapter(tmp_path / "adapters" / "animals").heads.values()} == {torch.float32}


def test_training_goes_on_from_adapters_and_heads_in_folders(models, tmp_path):
    first = fit(models["roberta"], tmp_path, ["animals"], [AdapterCheckpoint()], max_epochs=2)
    on = module(models["roberta"], adapters=str(tmp_path / "adapters"))
    on.build([TASKS["animals"][0]])
    for key, value in state(first, "animals").items():
        torch.testing.assert_close(state(on, "animals")[key], value)
    assert all(p.requires_grad for p in on.task_parameters("animals").values())


class StopAfter(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 2:
            raise RuntimeError("stopped")


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(models, tmp_path):
    def checkpoint(root):
        return ModelCheckpoint(root / "checkpoints", filename="last", enable_version_counter=False)

    tasks, whole, parts = ["animals", "places"], tmp_path / "whole", tmp_path / "parts"
    flags = {"enable_checkpointing": True}
    uninterrupted = fit(models["bert"], whole, tasks, [checkpoint(whole)], **flags)
    with pytest.raises(RuntimeError, match="stopped"):
        fit(models["bert"], parts, tasks, [checkpoint(parts), StopAfter()], **flags)
    path = parts / "checkpoints" / "last.ckpt"
    resumed = fit(models["bert"], parts, tasks, [checkpoint(parts)], ckpt_path=path, **flags)
    for task in tasks:
        for key, value in state(uninterrupted, task).items():
            assert torch.equal(state(resumed, task)[key], value), key
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert "head_animals.weight" in saved and not any("base_layer" in key for key in saved)


def test_frozen_heads_stay_as_they_were_given(models, tmp_path):
    heads = {"animals": torch.randn(3, 16), "verbs": torch.randn(3, 16)}
    torch.save(heads, tmp_path / "heads.pt")
    given = str(tmp_path / "heads.pt")
    frozen = fit(models["llama"], tmp_path, ["animals", "verbs"], heads=given, train_heads=False, max_epochs=1)
    trained = fit(models["llama"], tmp_path, ["animals", "verbs"], heads=given, max_epochs=1)
    for task, head in heads.items():
        assert torch.equal(frozen.head_tensors(task)["score.weight"], head)
        assert not torch.equal(trained.head_tensors(task)["score.weight"], head)


def test_tokenizer_and_lengths_are_known_before_the_model_is_built(models, tmp_path):
    assert module(models["llama"]).max_length == 64
    assert module(models["roberta"]).max_length == 63  # its first position is the pad token's
    assert module(models["bert"], max_length=20).max_length == 20
    tokenizer = word_tokenizer(types=False, padding_side="left", limit=30)
    tokenizer.pad_token = None
    model = module(save_model("gpt2", tmp_path / "bare-gpt2", tokenizer=tokenizer))
    assert model.tokenizer.pad_token == "</s>" and model.tokenizer.padding_side == "right"
    assert model.max_length == 30
    model.build([TASKS["animals"][0]])
    assert model.model.get_base_model().config.pad_token_id == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": "nowhere"}, "nowhere is no full checkpoint"),
        ({"heads": {"other": "x"}}, "heads names 'other', which is no task"),
        ({"heads": "heads.pt"}, r"heads of snli, none of 'animals'"),
        ({"heads": {"animals": "wide.pt"}}, r"score.weight is \(3, 99\), .* need \(3, 16\)"),
        ({"max_length": 0}, "max_length is 0"),
    ],
)
def test_heads_that_do_not_fit_are_refused(arguments, message, models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"snli": torch.ones(3, 16)}, "heads.pt")
    torch.save({"animals": torch.ones(3, 99)}, "wide.pt")
    with pytest.raises(SheetbendError, match=message) as caught:
        module(models["llama"], **arguments).build([TASKS["animals"][0]])
    assert "\n" not in str(caught.value)


def test_backbones_that_do_not_fit_are_refused(tiny_clip, tmp_path):
    settings = {"lora": LoRA(target_modules=TARGETS["bert"])}

    def refuse(folder, message):
        with pytest.raises(SheetbendError, match=message) as caught:
            SequenceClassifier(str(folder), **settings).build([TASKS["animals"][0]])
        assert "\n" not in str(caught.value)

    refuse(tiny_clip, "no sequence classifier of its kind|no head named")
    config = DistilBertConfig(dim=16, hidden_dim=16, n_layers=1, n_heads=2, vocab_size=28)
    DistilBertForSequenceClassification(config).distilbert.save_pretrained(tmp_path)
    word_tokenizer(types=False).save_pretrained(tmp_path)
    refuse(tmp_path, "holds no pre_classifier.bias, which its classifier needs below the head")


def test_label_smoothing_leaves_absent_classes_out(models):
    model = module(models["llama"], label_smoothing=0.1)
    model.build([TASKS["verbs"][0]])
    inputs, labels = batch(["verbs"])
    assert model.loss(model(inputs), labels, "verbs").isfinite()
