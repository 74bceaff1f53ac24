"""Adapters and checkpoints in the forms in which they were published, made small: loaded, run, merged and tested."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from callbacks.merge import MergeCallback
from lightning_modules import ImageClassifier, SequenceClassifier, TextGenerator
from mergers import Merger, SheetbendError
from tests.lightning_modules.image_models import open_clip_model, save_open_clip
from tests.lightning_modules.text_backbones import (
    QUIET,
    SIZES,
    TARGETS,
    TASKS,
    VOCABULARY,
    Sentences,
    batch,
    save_model,
)
from tests.stand_ins import StandIns
from tests.text_stand_ins import word_tokenizer

CLIP_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]
# Fields that PEFT wrote at the time, and some that it no longer reads.
OLD_FIELDS = {
    "alpha_pattern": {},
    "auto_mapping": None,
    "inference_mode": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "rank_pattern": {},
    "revision": None,
}


def trained(model, folder, base, task_type=None, alpha=4, seed=0, targets=CLIP_TARGETS, **options):
    """Save a PEFT adapter with made-up values for ``model``, as ``PeftModel.save_pretrained`` does."""
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=alpha, target_modules=targets, task_type=task_type, **options)
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            nn.init.normal_(parameter, std=0.1)
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder)
    path = Path(folder) / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **OLD_FIELDS}))
    return model.eval()


def pixels(count=5):
    return torch.randint(0, 255, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def embeds(model):
    with torch.no_grad():
        return nn.functional.normalize(model(pixel_values=(pixels() / 255 - 0.5) / 0.5).image_embeds, dim=-1)


def without_tower_level(folder):
    """Take ``vision_model.`` out of an adapter's names, as in adapters that were made on CLIP's vision tower."""
    weights = load_file(folder / "adapter_model.safetensors")
    weights = {key.replace("vision_model.", ""): value for key, value in weights.items()}
    save_file(weights, folder / "adapter_model.safetensors")


def hub(root, monkeypatch, **repositories):
    """Put folders into a hub cache by their ids (``lab__name``); no way to the hub."""
    constants = pytest.importorskip("huggingface_hub.constants")
    for name, folder in repositories.items():
        repository = root / f"models--{name.replace('__', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("1" * 40)
        (repository / "snapshots").mkdir()
        (repository / "snapshots" / ("1" * 40)).symlink_to(folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(root)


@pytest.mark.parametrize("alpha", [4, 8])
def test_knots_vision_adapters_from_the_hub(alpha, tiny_clip, tmp_path, monkeypatch):
    expected, folders = {}, {}
    for seed, task in enumerate(("hue", "tint")):
        folder = tmp_path / task
        base = CLIPVisionModelWithProjection.from_pretrained(tiny_clip)
        expected[task] = embeds(trained(base, folder, None, alpha=alpha, seed=seed))
        without_tower_level(folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        # As PEFT notes it for a part of a model, or for a base that came from its author's cache.
        of_part = {"base_model_class": "CLIPVisionTransformer", "parent_library": "transformers.models.clip"}
        config["auto_mapping"] = of_part
        config["base_model_name_or_path"] = [None, "/data/hub/models--lab--test-clip/snapshots/3d74"][seed]
        (folder / "adapter_config.json").write_text(json.dumps(config))
        folders[f"hoffman-lab__KnOTS-ViT-B-32_lora_R16_{task}"] = folder
    hub(tmp_path / "hub", monkeypatch, **folders)
    model = ImageClassifier(tiny_clip, adapters="hoffman-lab/KnOTS-ViT-B-32_lora_R16_{task}").eval()
    trainer = Trainer(**QUIET, default_root_dir=tmp_path, callbacks=[MergeCallback({"knots": "knots-ties"})])
    trainer.test(model, StandIns(["hue", "tint"]), verbose=False)
    assert {s.variant for s in model.scores()} == {"pretrained", "finetuned", "knots"}
    for task, value in expected.items():
        model.activate(task)
        with torch.no_grad():
            torch.testing.assert_close(model(pixels()), value)
    with pytest.raises(SheetbendError, match="lab/other-hue is not on this machine"):
        ImageClassifier(tiny_clip, adapters="lab/other-{task}").build(StandIns(["hue"]).tasks)


def test_knots_files_of_whole_peft_models(tiny_clip, tmp_path):
    base = CLIPVisionModelWithProjection.from_pretrained(tiny_clip)
    peft = trained(base, tmp_path / "folder", None)
    state = {key.replace("model.vision_model.", "model."): value for key, value in peft.state_dict().items()}
    torch.save({f"vision_model.{key}": value for key, value in state.items()}, tmp_path / "hue.pt")
    model = ImageClassifier(tiny_clip, adapters={"hue": str(tmp_path / "hue.pt")}).eval()
    model.build(StandIns(["hue"]).tasks, fresh=False)
    model.activate("hue")
    with torch.no_grad():
        torch.testing.assert_close(model(pixels()), embeds(peft))


@pytest.mark.parametrize("saved", [True, False], ids=["head in the folder", "heads.pt"])
def test_knots_llama_adapters_with_their_heads(saved, tmp_path):
    backbone, tasks = save_model("llama", tmp_path / "Meta-Llama-3-8B", labels=3), ["animals", "verbs"]
    expected, heads = {}, {}
    inputs, _ = batch(tasks)
    for seed, task in enumerate(tasks):
        base = AutoModelForSequenceClassification.from_pretrained(backbone)
        folder = tmp_path / "adapters" / task
        peft = trained(base, folder, "meta-llama/Meta-Llama-3-8B", "SEQ_CLS", seed=seed, targets=TARGETS["llama"])
        heads[task] = peft.base_model.model.score.modules_to_save["default"].weight.detach().clone()
        assert heads[task].shape == (3, 16)
        if not saved:
            weights = load_file(folder / "adapter_model.safetensors")
            save_file({k: v for k, v in weights.items() if "lora_" in k}, folder / "adapter_model.safetensors")
        peft.config.pad_token_id = 0
        with torch.no_grad():
            expected[task] = peft(**inputs).logits
    torch.save(heads, tmp_path / "heads.pt")
    given = {} if saved else {"heads": str(tmp_path / "heads.pt")}
    model = SequenceClassifier(backbone, adapters=str(tmp_path / "adapters"), **given).eval()
    trainer = Trainer(**QUIET, default_root_dir=tmp_path, callbacks=[MergeCallback({"knots": "knots-ties"})])
    trainer.test(model, Sentences(tasks), verbose=False)
    for task, value in expected.items():
        model.activate(task)
        with torch.no_grad():
            logits = model.logits(model({k: v for k, v in inputs.items() if k != "token_type_ids"}), task)
        torch.testing.assert_close(logits, value, rtol=1e-5, atol=1e-5)
    if not saved:
        with pytest.raises(SheetbendError, match=r"adapter of animals comes without a head; give it in .*heads"):
            SequenceClassifier(backbone, adapters=str(tmp_path / "adapters")).build(
                [TASKS[task][0] for task in tasks], fresh=False
            )


def language_model(kind, folder):
    torch.manual_seed(0)
    if kind == "t5":
        config = T5Config(
            d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, vocab_size=28, decoder_start_token_id=0
        )
        model = T5ForConditionalGeneration(config)
    elif kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SIZES, **VOCABULARY, num_key_value_heads=1))
    else:
        model = MistralForCausalLM(MistralConfig(**SIZES, **VOCABULARY, num_key_value_heads=1))
    model.save_pretrained(folder)
    word_tokenizer(types=False).save_pretrained(folder)
    return str(folder)


def load_language_model(kind, backbone):
    return (T5ForConditionalGeneration if kind == "t5" else AutoModelForCausalLM).from_pretrained(backbone)


LANGUAGE = [
    # tanganke/flan-t5-large_glue-mnli_lora-16, Speeeed/Llama-3.2-3B-instruct-..., Lots-of-LoRAs/Mistral-7B-...-task605
    ("t5", "flan-t5-large", "google/flan-t5-large", "SEQ_2_SEQ_LM", ["q", "v"], 8),
    ("llama", "Llama-3.2-3B-Instruct", "meta-llama/Llama-3.2-3B-Instruct", "CAUSAL_LM", ["q_proj", "v_proj"], 4),
    ("mistral", "Mistral-7B-Instruct-v0.2", "mistralai/Mistral-7B-Instruct-v0.2", "CAUSAL_LM", ["q_proj", "k_proj"], 8),
]


def next_tokens(model):
    ids = torch.tensor([[1, 5, 6, 7], [1, 8, 9, 2]])
    with torch.no_grad():
        more = {"decoder_input_ids": torch.tensor([[0, 5], [0, 6]])} if model.config.is_encoder_decoder else {}
        return model(input_ids=ids, **more).logits


@pytest.mark.parametrize(("kind", "name", "base", "task_type", "targets", "alpha"), LANGUAGE)
def test_adapters_of_language_models(kind, name, base, task_type, targets, alpha, tmp_path):
    backbone = language_model(kind, tmp_path / name)
    expected = {}
    for seed, task in enumerate(("one", "two")):
        model = load_language_model(kind, backbone)
        peft = trained(model, tmp_path / "runs" / task, base, task_type, alpha, seed, targets)
        expected[task] = next_tokens(peft)
    model = TextGenerator(backbone, adapters=str(tmp_path / "runs" / "{task}")).eval()
    model.build([SimpleNamespace(name=task) for task in expected], fresh=False)
    for task, logits in expected.items():
        model.activate(task)
        torch.testing.assert_close(next_tokens(model.model.get_base_model()), logits)
    merged = Merger("knots", "ties").merge(model.adapters())
    variant = model.variant("ties", merged)
    plain = merged.apply(load_language_model(kind, backbone)).eval()
    with model.using(variant, "one"):
        torch.testing.assert_close(next_tokens(model.model.get_base_model()), next_tokens(plain))


def test_checkpoints_into_which_adapters_were_merged_stand_beside_adapters(tmp_path):
    """Speeeed's Flan-T5 models: whole checkpoints, of which only q and v differ, beside tanganke's adapters."""
    backbone = language_model("t5", tmp_path / "flan-t5-large")
    adapter = trained(
        load_language_model("t5", backbone), tmp_path / "mnli", "google/flan-t5-large", targets=["q", "v"]
    )
    other = trained(load_language_model("t5", backbone), tmp_path / "was", None, seed=1, targets=["q", "v"])
    lora = {"was": str(tmp_path / "was"), "mnli": str(tmp_path / "mnli")}
    expected = {"mnli": next_tokens(adapter), "imdb": next_tokens(other)}
    other.merge_and_unload().save_pretrained(tmp_path / "imdb")
    model = TextGenerator(backbone, adapters={task: str(tmp_path / task) for task in expected}).eval()
    model.build([SimpleNamespace(name=task) for task in expected], fresh=False)
    assert list(model.donors.adapters) == ["imdb"]
    finetuned = model.variants["finetuned"]
    for task, logits in expected.items():
        with model.using(finetuned, task):
            torch.testing.assert_close(next_tokens(model.model.get_base_model()), logits)
    merged = Merger("full", "mean").merge(model.adapters()).dense()
    as_adapters = TextGenerator(backbone, adapters=lora)
    as_adapters.build([SimpleNamespace(name=task) for task in lora], fresh=False)
    for module, delta in Merger("full", "mean").merge(as_adapters.adapters()).dense().items():
        torch.testing.assert_close(merged[module], delta, rtol=1e-4, atol=1e-6)
    with pytest.raises(SheetbendError, match=r"adapters of imdb are full checkpoints, .* not trained"):
        model.build([SimpleNamespace(name=task) for task in expected])


@pytest.mark.parametrize("form", ["safetensors", "pytorch_model.bin", "shards"])
@pytest.mark.parametrize("kind", ["roberta", "gpt2"])
def test_glue_checkpoints_with_their_heads(kind, form, tmp_path):
    backbone, tasks = save_model(kind, tmp_path / f"base-{kind}"), ["animals", "places"]
    expected = {}
    inputs, _ = batch()
    inputs.pop("token_type_ids")
    for seed, task in enumerate(tasks, 1):
        labels = len(TASKS[task][0].class_names)
        folder = save_model(kind, tmp_path / f"{kind}-{task}", seed=seed, labels=labels)
        own = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        expected[task] = own(**inputs).logits.detach()
        if form == "pytorch_model.bin":
            torch.save(own.state_dict(), Path(folder) / form)
            (Path(folder) / "model.safetensors").unlink()
        elif form == "shards":
            (Path(folder) / "model.safetensors").unlink()
            own.save_pretrained(folder, max_shard_size="5KB")
    model = SequenceClassifier(backbone, adapters=str(tmp_path / (kind + "-{task}"))).eval()
    merge = MergeCallback({"mean": Merger("full", "mean"), "ties": "ties"})
    trainer = Trainer(**QUIET, default_root_dir=tmp_path, callbacks=[merge])
    trainer.test(model, Sentences(tasks), verbose=False)
    assert {s.variant for s in model.scores()} == {"pretrained", "finetuned", "mean", "ties"}
    for task, logits in expected.items():
        features = model.features_of(model.variants["finetuned"], inputs, task)
        torch.testing.assert_close(model.logits(features, task), logits, rtol=1e-4, atol=1e-4)
    mean = model.variant("mean", Merger("full", "mean").merge(model.adapters()))
    parts = [model.donors.variant(task, model.model, True).weights for task in tasks]
    for name, weight in mean.weights.items():
        torch.testing.assert_close(weight, (parts[0][name] + parts[1][name]) / 2, rtol=1e-5, atol=1e-6)
    model.donors.release()
    assert not model.donors._held


def test_full_clip_towers_are_tested_as_they_are(tiny_clip, tmp_path):
    """tanganke/clip-vit-base-patch32_mnist and its like: the vision tower without its projection."""
    tasks = ["hue", "shade"]
    for seed, task in enumerate(tasks, 1):
        tower = CLIPVisionModel.from_pretrained(tiny_clip)
        torch.manual_seed(seed)
        for parameter in tower.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
        tower.save_pretrained(tmp_path / task)
        if seed == 1:  # as transformers 4 names them
            weights = load_file(tmp_path / task / "model.safetensors")
            weights = {f"vision_model.{k.removeprefix('vision_model.')}": v for k, v in weights.items()}
            save_file(weights, tmp_path / task / "model.safetensors")
    model = ImageClassifier(tiny_clip, adapters=str(tmp_path / "{task}")).eval()
    merge = MergeCallback({"ties": "ties"}, ensemble=True)
    trainer = Trainer(**QUIET, default_root_dir=tmp_path, callbacks=[merge])
    trainer.test(model, StandIns(tasks), verbose=False)
    assert {s.variant for s in model.scores()} == {"pretrained", "finetuned", "ensemble", "ties"}
    for task in tasks:
        whole = CLIPVisionModelWithProjection.from_pretrained(tiny_clip).eval()
        weights = load_file(tmp_path / task / "model.safetensors")
        weights = {f"vision_model.{k.removeprefix('vision_model.')}": v for k, v in weights.items()}
        assert not whole.load_state_dict(weights, strict=False).unexpected_keys
        torch.testing.assert_close(model.features_of(model.variants["finetuned"], pixels(), task), embeds(whole))
    assert "visual_projection" in model.adapters()[0].metadata["notes"][0]


def test_adaranks_state_dicts_of_open_clip(tmp_path):
    """The whole open_clip model below ``model.``, text tower included, in a file of ``torch.save``."""
    backbone, tasks = save_open_clip(tmp_path / "ViT-B-32"), ["hue", "shade"]
    towers = {}
    for seed, task in enumerate(tasks, 1):
        finetuned = open_clip_model()
        torch.manual_seed(seed)
        for parameter in finetuned.visual.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
        towers[task] = dict(finetuned.visual.named_parameters())
        (tmp_path / task).mkdir()
        state = {f"model.{name}": value for name, value in finetuned.state_dict().items()}
        torch.save(state, tmp_path / task / "nonlinear_finetuned.pt")
    model = ImageClassifier(backbone, adapters=str(tmp_path / "{task}" / "nonlinear_finetuned.pt")).eval()
    merge = MergeCallback({"mean": Merger("full", "mean"), "ties": "ties"}, ensemble=True)
    trainer = Trainer(**QUIET, default_root_dir=tmp_path, callbacks=[merge])
    trainer.test(model, StandIns(tasks), verbose=False)
    assert {s.variant for s in model.scores()} == {"pretrained", "finetuned", "ensemble", "mean", "ties"}
    base = dict(model.model.get_base_model().named_parameters())
    for adapter in model.adapters():
        assert len(adapter) == len(base)
        assert "have no place in" in adapter.metadata["notes"][0]  # the text tower
        for name, value in adapter.dense().items():
            key = name if name in base else f"{name}.weight"
            torch.testing.assert_close(value.reshape(base[key].shape), towers[adapter.name][key] - base[key])


class Pickled(nn.Linear):
    """Stands for the ImageEncoder of Task Arithmetic's repository."""


def test_what_is_no_checkpoint_of_this_model_is_refused(tiny_clip, tmp_path):
    def refuse(source, message):
        with pytest.raises(SheetbendError, match=message) as caught:
            ImageClassifier(tiny_clip, adapters={"hue": str(source)}).build(StandIns(["hue"]).tasks, fresh=False)
        assert "\n" not in str(caught.value)

    torch.save(Pickled(2, 2), tmp_path / "finetuned.pt")
    refuse(tmp_path / "finetuned.pt", r"finetuned.pt holds more than tensors.*state_dict.*tanganke/clip-vit-\*")
    whole = CLIPVisionModelWithProjection.from_pretrained(tiny_clip).state_dict()
    key = "vision_model.encoder.layers.0.mlp.fc1.weight"
    save_file({k: v for k, v in whole.items() if k != key}, tmp_path / "torn.safetensors")
    refuse(tmp_path / "torn.safetensors", f"has no {key}, but test-clip has; give a whole checkpoint")
    save_file({**whole, key: torch.ones(3, 3)}, tmp_path / "wide.safetensors")
    refuse(tmp_path / "wide.safetensors", r"fc1.weight is F32 \(3, 3\), but test-clip has \(32, 16\)")
    save_file({"other": torch.ones(2)}, tmp_path / "other.safetensors")
    refuse(tmp_path / "other.safetensors", "holds no weight of CLIPVisionModelWithProjection, but other")
    torch.save({"epoch": 3}, tmp_path / "log.pt")
    refuse(tmp_path / "log.pt", "'epoch', a int instead of a tensor")
    base = CLIPVisionModelWithProjection.from_pretrained(tiny_clip)
    trained(base, tmp_path / "saved", None, modules_to_save=["visual_projection"])
    refuse(tmp_path / "saved", r"has modules_to_save \['visual_projection'\]")
    refuse(tmp_path / "nowhere", "nowhere")


def test_peft_reads_the_stand_ins_of_published_folders(tiny_clip, tmp_path):
    """The folders made here are what PEFT makes: it reads them itself."""
    peft = trained(CLIPVisionModelWithProjection.from_pretrained(tiny_clip), tmp_path, None)
    loaded = PeftModel.from_pretrained(CLIPVisionModelWithProjection.from_pretrained(tiny_clip), tmp_path).eval()
    torch.testing.assert_close(embeds(loaded), embeds(peft))
