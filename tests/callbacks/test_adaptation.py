"""What an adaptation leaves on disk: a merge that other runs test, its masks as numbers and pictures."""

import csv
import json

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForSequenceClassification, CLIPVisionModelWithProjection

from callbacks import AdaptationCheckpoint, MergeCallback
from lightning_modules import Adaptation
from mergers import SheetbendError
from tests.lightning_modules.adapting import (
    QUIET,
    adapt,
    full_clip,
    full_open_clip,
    full_text,
    lora_clip,
    lora_open_clip,
    lora_text,
    mixed_clip,
)

SETTINGS = Adaptation(steps=4, batch_size=8, look_every=2, learning_rate=0.05)
BUILDERS = {
    "lora clip": lambda clip, root: lora_clip(clip),
    "lora open_clip": lambda clip, root: lora_open_clip(root),
    "lora gpt2": lambda clip, root: lora_text("gpt2", root),
    "full clip": full_clip,
    "full open_clip": lambda clip, root: full_open_clip(root),
    "full roberta": lambda clip, root: full_text("roberta", root),
    "mixed clip": mixed_clip,
}


def adapted(built, root, start="task_arithmetic", **flags):
    settings = Adaptation(**{**vars(SETTINGS), "start": start})
    return adapt(built, root, settings, [AdaptationCheckpoint()], **flags)


@pytest.mark.parametrize("kind", BUILDERS)
def test_the_merge_on_disk_is_the_one_that_was_learned(kind, tiny_clip, tmp_path):
    built = BUILDERS[kind](tiny_clip, tmp_path)
    module = adapted(built, tmp_path / "run", "cart" if "roberta" in kind else "task_arithmetic")
    folder = tmp_path / "run" / "merged"
    lora = kind.startswith("lora")
    assert (folder / ("adapter_config.json" if lora else "model.safetensors")).is_file()
    assert {path.stem for path in (folder / "heads").iterdir()} == set(module.task_names)
    with torch.no_grad():
        learned = module.merged_weights()
    merge = MergeCallback({"read": str(folder)})
    merge.mergers["live"] = module.merged()
    for name, variant in merge.build_variants(built[0]).items():
        assert set(learned) <= set(variant.weights), name
        parameters = dict(built[0].model.named_parameters())
        for parameter, weight in variant.weights.items():
            torch.testing.assert_close(weight, learned.get(parameter, parameters[parameter]), rtol=1e-4, atol=1e-6)
    Trainer(**QUIET, callbacks=[merge], default_root_dir=tmp_path).test(built[0], built[1], verbose=False)
    scores = {name: {(s.task, s.metric): s.value for s in built[0].scores() if s.variant == name} for name in
              ("read", "live")}  # fmt: skip
    assert scores["read"] == scores["live"] and scores["read"]
    if lora:
        config = folder / "adapter_config.json"
        other = json.loads(config.read_text()) | {"base_model_name_or_path": "org/other"}
        config.write_text(json.dumps(other))
        with pytest.raises(SheetbendError, match="its base model is org/other, this run's is "):
            merge.build_variants(built[0])


@pytest.mark.parametrize("kind", ["full clip", "full roberta"])
def test_transformers_reads_the_merged_model(kind, tiny_clip, tmp_path):
    module = adapted(BUILDERS[kind](tiny_clip, tmp_path), tmp_path / "run", "cart")
    auto = CLIPVisionModelWithProjection if "clip" in kind else AutoModelForSequenceClassification
    model, report = auto.from_pretrained(tmp_path / "run" / "merged", output_loading_info=True)
    assert all(key.startswith("classifier.") for key in report["missing_keys"]) and not report["unexpected_keys"]
    own = {f"base_model.model.{name}": parameter for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for name, weight in module.merged_weights().items():
            assert torch.equal(own[name], weight), name


def test_numbers_of_masks_on_disk_agree(tiny_clip, tmp_path):
    module = adapted(lora_clip(tiny_clip), tmp_path, log_every_n_steps=1, logger=TensorBoardLogger(tmp_path, "", ""))
    with safe_open(tmp_path / "learned.safetensors", framework="pt") as file:
        logits, coefficients = file.get_tensor("logits"), file.get_tensor("coefficients")
        names = json.loads(file.metadata()["names"])
    assert torch.equal(logits, module.logits) and torch.equal(coefficients, module.coefficients)
    assert names["tasks"] == ["hue", "shade"] and len(names["modules"]) == len(coefficients)
    ranks = [2] * len(names["tasks"]) * len(names["modules"])
    kept = [int((own > 0).sum()) for own in logits.split(ranks)]
    expected = [[module, task] for module in names["modules"] for task in names["tasks"]]
    with (tmp_path / "kept_rank.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [[row["module"], row["task"]] for row in rows] == expected
    assert [int(row["kept"]) for row in rows] == kept and {row["directions"] for row in rows} == {"2"}
    assert len(set(kept)) > 1 and (tmp_path / "plots" / "kept_rank.png").read_bytes()[1:4] == b"PNG"
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert len(events.Scalars("entropy")) == 4
    for step, entropy in enumerate(events.Scalars("entropy")):
        own = [events.Scalars(f"entropy/{task}")[step].value for task in names["tasks"]]
        assert entropy.value == pytest.approx(sum(own) / 2)
    assert [event.step for event in events.Scalars("kept_share")] == [2, 4]
    assert events.Scalars("kept_share")[-1].value == pytest.approx(sum(kept) / len(logits))
    assert [event.step for event in events.Images("kept_rank")] == [2, 4]


def test_coefficients_alone_leave_a_merge_too(tiny_clip, tmp_path):
    settings = Adaptation(**{**vars(SETTINGS), "learn": "coefficients"})
    module = adapt(lora_clip(tiny_clip), tmp_path, settings, [AdaptationCheckpoint()])
    assert (tmp_path / "merged" / "adapter_model.safetensors").is_file() and module.kept().share == 1


def test_fast_dev_run_leaves_nothing(tiny_clip, tmp_path):
    adapted(lora_clip(tiny_clip), tmp_path / "run", fast_dev_run=True)
    assert not (tmp_path / "run").exists()
