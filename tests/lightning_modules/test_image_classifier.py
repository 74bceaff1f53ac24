from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Trainer
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPModel

from callbacks.adapter_checkpoint import AdapterCheckpoint
from callbacks.merge import MergeCallback
from datamodules.images import ImageTransform
from datamodules.tasks import Task
from lightning_modules import ImageClassifier, LoRA
from mergers import Merger, SheetbendError, Ties, load_adapter, load_difference
from tests.lightning_modules.image_models import save_dinov2, save_open_clip, save_vit
from tests.lightning_modules.training import QUIET
from tests.stand_ins import StandIns


@pytest.fixture
def built(tiny_clip):
    model = ImageClassifier(tiny_clip)
    model.build(StandIns(["hue", "shade"]).tasks)
    return model.eval()


@torch.no_grad()
def test_zero_shot_logits_are_those_of_clip(built, tiny_clip):
    """One prompt a class: the logits are CLIP's own, at scale 100."""
    clip, tokenizer = CLIPModel.from_pretrained(tiny_clip).eval(), AutoTokenizer.from_pretrained(tiny_clip)
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    tokens = tokenizer(["a photo of red.", "a photo of green.", "a photo of blue."], return_tensors="pt")
    out = clip(
        input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=(images / 255 - 0.5) / 0.5
    )
    expected = 100 * out.logits_per_image / clip.logit_scale.exp()
    torch.testing.assert_close(built.logits(built(images), "hue"), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_images_of_another_size_are_resized(built):
    images = torch.randint(0, 256, (4, 3, 2, 2), dtype=torch.uint8)
    constant = images[:, :, :1, :1].expand(4, 3, 20, 20)
    torch.testing.assert_close(built(constant), built(constant[:, :, :8, :8]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_logit_scale_multiplies(tiny_clip, built):
    hotter = ImageClassifier(tiny_clip, logit_scale=1e4)
    hotter.build(StandIns(["hue", "shade"]).tasks)
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(
        hotter.eval().logits(hotter(images), "shade"), 100 * built.logits(built(images), "shade"), rtol=1e-4, atol=1e-3
    )


def test_only_adapters_are_trained(built):
    trained = {name for name, parameter in built.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name for name in trained)


# Other encoders.


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    """The name and the LoRA targets of each tiny encoder."""
    folder = tmp_path_factory.mktemp("encoders")
    return {
        "vit": (save_vit(folder / "vit"), ["q_proj", "v_proj"]),
        "dinov2": (save_dinov2(folder / "dinov2"), ["q_proj", "v_proj"]),
        "open_clip": (save_open_clip(folder / "open_clip"), ["attn"]),
    }


def classifier(encoders, kind, **arguments):
    name, targets = encoders[kind]
    settings = {"lora": LoRA(r=4, target_modules=targets), "learning_rate": 2e-2}
    return ImageClassifier(name, **settings | arguments)


def fitted(encoders, kind, root, tasks, **arguments):
    model = classifier(encoders, kind, **arguments)
    trainer = Trainer(default_root_dir=root, max_epochs=6, callbacks=[AdapterCheckpoint()], **FIT)
    trainer.fit(model, StandIns(tasks))
    return model


def accuracies(model):
    return {(s.variant, s.task): s.value for s in model.scores() if s.metric == "accuracy"}


FIT = QUIET | {"num_sanity_val_steps": 0, "enable_checkpointing": False}


@pytest.mark.parametrize("kind", ["vit", "dinov2", "open_clip"])
def test_every_encoder_fits_merges_and_tests(encoders, tmp_path, kind):
    fitted(encoders, kind, tmp_path, ["hue", "shade"], gradient_checkpointing=kind != "vit")
    again = classifier(encoders, kind)
    merge = MergeCallback({"knots-ties": Merger("knots", Ties(density=0.5))})
    trainer = Trainer(default_root_dir=tmp_path, callbacks=[merge], **QUIET)
    trainer.test(again, StandIns(["hue", "shade"]), verbose=False)
    measured = accuracies(again)
    assert {variant for variant, _ in measured} == {"pretrained", "finetuned", "knots-ties"}
    for task in ("hue", "shade"):
        assert measured["finetuned", task] > max(0.7, measured["pretrained", task] - 0.01)
    # The merge is what the library alone makes of the folders, written into a plain encoder.
    adapters = [load_adapter(tmp_path / "adapters" / task, name=task) for task in ("hue", "shade")]
    merged = Merger("knots", Ties(density=0.5)).merge(adapters)
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    plain = merged.apply(again.source.load(torch.float32))
    pixels = (images / 255 - again.pixel_mean) / again.pixel_std
    with torch.no_grad():
        expected = torch.nn.functional.normalize(again.source.embed(plain, pixels), dim=-1)
    given = again.eval().features_of(again.variant("merged", merged), images, "hue")
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dinov2", "open_clip"])
def test_an_adapter_folder_is_what_peft_loads(encoders, tmp_path, kind):
    model = fitted(encoders, kind, tmp_path, ["hue"]).eval()
    model.activate("hue")
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    loaded = PeftModel.from_pretrained(model.source.load(torch.float32), tmp_path / "adapters" / "hue").eval()
    pixels = (images / 255 - model.pixel_mean) / model.pixel_std
    expected = torch.nn.functional.normalize(model.source.embed(loaded, pixels), dim=-1)
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
    head = load_file(tmp_path / "adapters" / "hue" / "head.safetensors")["class_vectors"]
    torch.testing.assert_close(head, model.head_hue)


@torch.no_grad()
def test_prototypes_are_means_over_the_training_images(encoders, tmp_path):
    tasks = ["hue", "tint", "shade"]
    model, data = built_with_data(encoders, "dinov2", tasks)
    plain = model.source.load(torch.float32)
    own = {}
    for task in tasks:
        split = data.split(task, "train")
        images, labels = split.batch(list(range(len(split))))
        features = model.source.embed(plain, (images / 255 - model.pixel_mean) / model.pixel_std)
        units = torch.nn.functional.normalize(features, dim=-1)
        means = torch.stack([units[labels == label].mean(0) for label in range(int(labels.max()) + 1)])
        own[task] = torch.nn.functional.normalize(means, dim=-1)
        torch.testing.assert_close(getattr(model, f"head_{task}"), own[task], rtol=1e-4, atol=1e-5)
    shared = torch.nn.functional.normalize(own["hue"] + own["tint"], dim=-1)
    torch.testing.assert_close(model.joint_head, torch.cat([shared, own["shade"]]), rtol=1e-4, atol=1e-5)


def built_with_data(encoders, kind, tasks, **arguments):
    data, model = StandIns(tasks), classifier(encoders, kind, **arguments)
    data.setup()
    model.build(data.tasks, data=data)
    return model.eval(), data


def test_prototypes_are_made_once_and_of_the_same_images_in_every_run(encoders, tmp_path, monkeypatch):
    monkeypatch.setenv("SHEETBEND_CACHE", str(tmp_path))
    heads = [
        built_with_data(encoders, "vit", tasks, prototype_images=5, seed=seed)[0].head_hue
        for seed, tasks in ((0, ["hue"]), (1, ["shade", "hue"]))
    ]
    assert torch.equal(*heads)
    monkeypatch.setattr(ImageClassifier, "_embed_pretrained", None)
    assert torch.equal(built_with_data(encoders, "vit", ["hue"], prototype_images=5)[0].head_hue, heads[0])
    monkeypatch.undo()
    assert not torch.equal(built_with_data(encoders, "vit", ["hue"], prototype_images=6)[0].head_hue, heads[0])


def test_prototypes_can_be_asked_for_where_there_is_a_text_tower(encoders):
    model, _ = built_with_data(encoders, "open_clip", ["hue"], head="prototypes")
    text, _ = built_with_data(encoders, "open_clip", ["hue"])
    assert model.head_hue.shape == text.head_hue.shape
    assert not torch.allclose(model.head_hue, text.head_hue)


def test_the_transform_is_known_before_anything_is_built(encoders, tiny_clip):
    assert classifier(encoders, "dinov2").image_transform == ImageTransform(8, 10, "crop", "bicubic")
    assert ImageClassifier(tiny_clip).image_transform.size == 8


def test_a_bfloat16_encoder_is_trained_and_tested(encoders, tmp_path):
    for kind in ("dinov2", "open_clip"):
        model = fitted(encoders, kind, tmp_path / kind, ["shade"], dtype="bfloat16")
        base = {name: p for name, p in model.model.named_parameters() if "lora_" not in name}
        assert {p.dtype for p in base.values()} == {torch.bfloat16}
        assert accuracies(model)["finetuned", "shade"] > 0.7


@torch.no_grad()
def test_a_full_checkpoint_of_open_clip_merges_with_its_positions_and_vectors(encoders, tmp_path):
    model, _ = built_with_data(encoders, "open_clip", ["hue"])
    tower = model.source.load(torch.float32)
    before = tower.state_dict()
    generator = torch.Generator().manual_seed(0)
    after = {name: value + torch.randn(value.shape, generator=generator) / 20 for name, value in before.items()}
    for name, state in (("before", before), ("after", after)):
        save_file(
            {f"visual.{key}": value.contiguous() for key, value in state.items()}, tmp_path / f"{name}.safetensors"
        )
    difference = load_difference(tmp_path / "after.safetensors", tmp_path / "before.safetensors")
    variant = model.variant("half", Merger(coefficients=0.5).merge([difference]))
    assert {name.removeprefix("base_model.model.").replace(".base_layer", "") for name in variant.weights} == set(
        before
    )
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    given = model.features_of(variant, images, "hue")
    tower.load_state_dict({name: (before[name] + after[name]) / 2 for name in before})
    expected = tower((images / 255 - model.pixel_mean) / model.pixel_std)
    torch.testing.assert_close(given, torch.nn.functional.normalize(expected, dim=-1), rtol=1e-4, atol=1e-5)


def test_heads_that_cannot_be_made_are_one_line(encoders, tiny_clip, monkeypatch):
    def refuse(model, tasks, message, data=None):
        with pytest.raises(SheetbendError, match=message) as caught:
            model.build(tasks, data=data)
        assert "\n" not in str(caught.value)

    bare = Task("bare", ("red", "green"))
    prompts = r"task bare: its classes have no prompts; give the task templates.*head: prototypes"
    refuse(ImageClassifier(tiny_clip), [bare], prompts)
    refuse(classifier(encoders, "open_clip"), [bare], prompts)
    refuse(classifier(encoders, "vit", head="text"), [bare], r"head is text, but backbone .*vit' has no text tower")
    refuse(classifier(encoders, "vit"), [bare], "class vectors are made of training images")
    data = StandIns(["hue"])
    data.setup()
    missing = replace(data.tasks[0], class_names=(*data.tasks[0].class_names, "mauve"))
    refuse(classifier(encoders, "vit"), [missing], "task hue: class 'mauve' has no training image", data)
    model = classifier(encoders, "vit")
    model.build([replace(missing, absent=("mauve",))], data=data)
    assert not model.head_hue[3].any()
    refuse(
        classifier(encoders, "open_clip", lora=LoRA()), data.tasks, r"reach .*attn.out_proj.*end in attn, c_fc, c_proj"
    )
    with pytest.raises(SheetbendError, match="prototype_images"):
        ImageClassifier(tiny_clip, prototype_images=0)
