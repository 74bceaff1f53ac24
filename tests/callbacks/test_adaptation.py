"""What an adaptation leaves on disk: a merge that other runs test, what it is made of as numbers and pictures."""

import csv
import json

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForSequenceClassification, CLIPVisionModelWithProjection

from callbacks import AdaptationCheckpoint, MergeCallback, ResultsCallback
from lightning_modules import Adaptation, TestTimeAdaptation
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
    unlabelled,
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
    found = merge.build_variants(built[0])
    assert found["read"].description == f"{found['live'].description}; read from {folder}"
    assert "was adapted to the test examples themselves" in " ".join(found["read"].caveats)
    for name, variant in found.items():
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


def table(path):
    """The rows of a CSV file."""
    with path.open() as file:
        return list(csv.DictReader(file))


def read(folder):
    """What TensorBoard was given."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def board(root):
    return {"log_every_n_steps": 1, "logger": TensorBoardLogger(root, "", "")}


def test_numbers_of_masks_on_disk_agree(tiny_clip, tmp_path):
    module = adapted(lora_clip(tiny_clip), tmp_path, **board(tmp_path))
    with safe_open(tmp_path / "learned.safetensors", framework="pt") as file:
        logits, coefficients = file.get_tensor("logits"), file.get_tensor("coefficients")
        assert list(file.metadata()) == ["names"]
        names = json.loads(file.metadata()["names"])
    assert torch.equal(logits, module.logits) and torch.equal(coefficients, module.coefficients)
    assert names["tasks"] == ["hue", "shade"] and len(names["modules"]) == len(coefficients)
    assert list(names["directions"]) == names["modules"]
    counts = [count for name in names["modules"] for count in names["directions"][name]]
    assert counts == [2] * len(names["tasks"]) * len(names["modules"]) and sum(counts) == len(logits)
    kept = [int((own > 0).sum()) for own in logits.split(counts)]
    expected = [[module, task] for module in names["modules"] for task in names["tasks"]]
    rows = table(tmp_path / "kept_rank.csv")
    assert [[row["module"], row["task"]] for row in rows] == expected
    assert [int(row["kept"]) for row in rows] == kept and {row["directions"] for row in rows} == {"2"}
    assert len(set(kept)) > 1 and (tmp_path / "plots" / "kept_rank.png").read_bytes()[1:4] == b"PNG"
    events = read(tmp_path)
    assert len(events.Scalars("entropy")) == 4
    for step, entropy in enumerate(events.Scalars("entropy")):
        own = [events.Scalars(f"entropy/{task}")[step].value for task in names["tasks"]]
        assert entropy.value == pytest.approx(sum(own) / 2)
    assert [event.step for event in events.Scalars("kept_share")] == [2, 4]
    assert events.Scalars("kept_share")[-1].value == pytest.approx(sum(kept) / len(logits))
    for place, task in enumerate(names["tasks"]):
        share = sum(kept[place::2]) / (len(logits) / 2)
        assert [event.step for event in events.Scalars(f"kept_share/{task}")] == [2, 4]
        assert events.Scalars(f"kept_share/{task}")[-1].value == pytest.approx(share)
    assert [event.step for event in events.Images("kept_rank")] == [2, 4]


def test_numbers_of_coefficients_on_disk_agree(tiny_clip, tmp_path):
    module = adapted(lora_clip(tiny_clip), tmp_path, **board(tmp_path))
    rows = table(tmp_path / "coefficients.csv")
    assert [(row["module"], row["task"]) for row in rows] == [
        (name, task) for name in module.merge.parts for task in ("hue", "shade")
    ]
    values = torch.tensor([float(row["coefficient"]) for row in rows]).view_as(module.coefficients)
    torch.testing.assert_close(values, module.coefficients.detach(), rtol=1e-6, atol=0)
    assert values.unique().numel() > 1 and (tmp_path / "plots" / "coefficients.png").read_bytes()[1:4] == b"PNG"
    events = read(tmp_path)
    for mean, task in zip(module.coefficients.mean(0), ("hue", "shade"), strict=True):
        assert [event.step for event in events.Scalars(f"coefficient/{task}")] == [2, 4]
        assert events.Scalars(f"coefficient/{task}")[-1].value == pytest.approx(mean.item())
    assert [event.step for event in events.Images("coefficients")] == [2, 4]


@pytest.mark.parametrize("learn", ["masks", "coefficients"])
def test_only_what_is_learned_is_written(learn, tiny_clip, tmp_path, capsys):
    settings = Adaptation(**{**vars(SETTINGS), "learn": learn})
    module = adapt(lora_clip(tiny_clip), tmp_path, settings, [AdaptationCheckpoint()], **board(tmp_path))
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert {"merged/adapter_model.safetensors", "learned.safetensors", "entropy.csv"} <= files
    masks, coefficients = {"kept_rank.csv", "plots/kept_rank.png"}, {"coefficients.csv", "plots/coefficients.png"}
    there, absent = (masks, coefficients) if learn == "masks" else (coefficients, masks)
    assert there <= files and not absent & files
    events = read(tmp_path)
    tags = {*events.Tags()["scalars"], *events.Tags()["images"]}
    assert "entropy_window" in tags and ("kept_rank" in tags) is ("kept_share" in tags) is (learn == "masks")
    assert ("coefficients" in tags) is ("coefficient/hue" in tags) is (learn == "coefficients")
    if learn == "coefficients":
        assert module.kept().share == 1


def test_what_is_left_out_has_no_coefficients(tiny_clip, tmp_path):
    settings = Adaptation(**{**vars(SETTINGS), "start": "cart", "leave_out": "q_proj"})
    module = adapt(lora_clip(tiny_clip), tmp_path, settings, [AdaptationCheckpoint()])
    names = [row["module"] for row in table(tmp_path / "coefficients.csv")]
    assert names and not any("q_proj" in name for name in names)
    assert any("q_proj" in name for name in module.merge.parts)


@pytest.mark.parametrize(("window", "ends"), [(2, [2, 4]), (3, [3, 4]), (9, [4])])
def test_the_entropy_of_each_window_is_in_a_file(window, ends, tiny_clip, tmp_path):
    settings = Adaptation(**{**vars(SETTINGS), "look_every": window})
    module = adapt(lora_clip(tiny_clip), tmp_path, settings, [AdaptationCheckpoint()], **board(tmp_path))
    rows = table(tmp_path / "entropy.csv")
    assert [int(row["step"]) for row in rows] == ends
    assert [float(row["entropy"]) for row in rows] == pytest.approx(module.entropies)
    events = read(tmp_path)
    assert [event.step for event in events.Scalars("entropy_window")] == ends
    assert [event.value for event in events.Scalars("entropy_window")] == pytest.approx(module.entropies)
    steps = [event.value for event in events.Scalars("entropy")]
    assert module.entropies[0] == pytest.approx(sum(steps[: ends[0]]) / ends[0])


def test_a_run_that_goes_on_has_each_window_once(tiny_clip, tmp_path):
    def part(steps, checkpoint=None):
        save = ModelCheckpoint(tmp_path / "saved", filename="last", enable_version_counter=False)
        callbacks, flags = [AdaptationCheckpoint(), save], board(tmp_path) | {"enable_checkpointing": True}
        return adapt(lora_clip(tiny_clip), tmp_path, SETTINGS, callbacks, checkpoint, **flags | {"max_steps": steps})

    part(2)
    first = (tmp_path / "entropy.csv").read_text()
    module = part(4, tmp_path / "saved" / "last.ckpt")
    assert len(module.entropies) == 2 and (tmp_path / "entropy.csv").read_text().startswith(first)
    assert [row["step"] for row in table(tmp_path / "entropy.csv")] == ["2", "4"]
    events = read(tmp_path)
    for tag in ("entropy_window", "kept_share", "kept_share/hue", "coefficient/hue"):
        assert [event.step for event in events.Scalars(tag)] == [2, 4], tag
    for tag in ("kept_rank", "coefficients"):
        assert [event.step for event in events.Images(tag)] == [2, 4], tag


def test_what_diverges_is_said_in_one_line(tiny_clip, tmp_path):
    settings = Adaptation(**{**vars(SETTINGS), "look_every": 1, "learning_rate": 1e30})
    with pytest.raises(SheetbendError, match="give a smaller"):
        adapt(lora_clip(tiny_clip), tmp_path, settings, [AdaptationCheckpoint()], **board(tmp_path))


def test_the_report_shows_what_was_learned(tiny_clip, tmp_path):
    model, data = lora_clip(tiny_clip)
    module, batches = TestTimeAdaptation(model, SETTINGS), unlabelled(data, SETTINGS)
    callbacks = [AdaptationCheckpoint(), MergeCallback({}), ResultsCallback(tensorboard=False)]
    trainer = Trainer(**QUIET, callbacks=callbacks, default_root_dir=tmp_path, max_steps=SETTINGS.steps)
    trainer.fit(module, batches)
    trainer.test(model, batches, verbose=False)
    text = (tmp_path / "report.md").read_text()
    for name in ("kept_rank", "coefficients", "curves"):
        assert f"](plots/{name}.png)" in text and (tmp_path / "plots" / f"{name}.png").is_file()
    assert ", adaptation " in text and ", fit " not in text
    assert list(json.loads((tmp_path / "results.json").read_text())["meta"]["seconds"]) == ["fit", "test"]


@pytest.mark.parametrize(
    ("kind", "start", "what"),
    [
        ("lora clip", "cart", "merged adapter of rank 4"),
        ("lora clip", "task_arithmetic", "merged adapter of ranks 1 to 4"),  # without what is masked
        ("full clip", "task_arithmetic", "merged model"),
    ],
)
def test_it_is_said_where_the_merge_lies(kind, start, what, tiny_clip, tmp_path, capsys):
    adapted(BUILDERS[kind](tiny_clip, tmp_path), tmp_path / "run", start)
    assert capsys.readouterr().out.splitlines()[-1] == f"{what}: {tmp_path / 'run' / 'merged'}"


def test_fast_dev_run_leaves_nothing(tiny_clip, tmp_path, capsys):
    adapted(lora_clip(tiny_clip), tmp_path / "run", fast_dev_run=True)
    assert not (tmp_path / "run").exists() and "merged" not in capsys.readouterr().out
