"""Adapters from the hub's cache, from published .pt files, and with heads beside them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import lora_tensors, write_peft_folder
from safetensors.torch import save_file
from torch import nn

from mergers import SheetbendError, load_adapter
from mergers.adapters.hub import is_hub_id

COMMITS = {"main": "1" * 40, "v1.0": "2" * 40}


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """The hub's cache, in its own layout, with one repository in two revisions; and no way to the hub."""
    constants = pytest.importorskip("huggingface_hub.constants")
    repository = tmp_path / "hub" / "models--lab--ViT_lora_mnist"
    (repository / "refs").mkdir(parents=True)
    for seed, (revision, commit) in enumerate(COMMITS.items()):
        (repository / "refs" / revision).write_text(commit)
        folder = write_peft_folder(repository / "snapshots" / commit, lora_tensors(seed=seed))
        blobs = repository / "blobs"
        blobs.mkdir(exist_ok=True)
        for file in list(folder.iterdir()):  # the cache holds links to blobs
            blob = blobs / f"{commit[:4]}{file.name}"
            file.rename(blob)
            file.symlink_to(Path("../../blobs") / blob.name)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def test_a_hub_id_is_read_from_the_cache(hub_cache):
    adapter = load_adapter("lab/ViT_lora_mnist")
    assert adapter.name == "ViT_lora_mnist"
    assert adapter.label == "lab/ViT_lora_mnist"
    torch.testing.assert_close(adapter["q"].A, lora_tensors(seed=0)["base_model.model.q.lora_A.weight"])
    tagged = load_adapter("lab/ViT_lora_mnist@v1.0", name="mnist")
    assert tagged.name == "mnist"
    torch.testing.assert_close(tagged["q"].A, lora_tensors(seed=1)["base_model.model.q.lora_A.weight"])
    assert load_adapter(f"lab/ViT_lora_mnist@{COMMITS['main']}").content_hash() == adapter.content_hash()


def test_a_path_comes_before_the_hub(hub_cache, tmp_path):
    write_peft_folder(tmp_path / "lab" / "ViT_lora_mnist", lora_tensors("v"))
    assert list(load_adapter("lab/ViT_lora_mnist")) == ["v"]
    with pytest.raises(SheetbendError, match="lab/other is no PEFT adapter folder: it does not exist"):
        load_adapter("lab/other")  # a folder `lab` is here, so this is a mistyped folder


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("lab/unknown", ["lab/unknown", "HF_HUB_OFFLINE", "give a folder"]),
        ("lab/ViT_lora_mnist@v9", ["lab/ViT_lora_mnist@v9", "HF_HUB_OFFLINE"]),
        ("lab/bad..name", ["lab/bad..name", "give a folder"]),
    ],
)
def test_what_is_not_in_the_cache(source, words, hub_cache):
    with pytest.raises(SheetbendError) as caught:
        load_adapter(source)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("GatedRepoError", "asks for consent"),
        ("RepositoryNotFoundError", "not on the hub, or is private"),
        ("RevisionNotFoundError", "has no revision 'v2'"),
        ("LocalEntryNotFoundError", "cannot be reached"),
        ("BadRequestError", "cannot be had from the hub"),
    ],
)
def test_what_the_hub_answers(error, words, monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    kind = getattr(pytest.importorskip("huggingface_hub.errors"), error)

    def refuse(*args, **options):
        raise kind.__new__(kind)

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SheetbendError, match=words) as caught:
        load_adapter("lab/name@v2")
    assert str(caught.value).startswith("lab/name@v2 ")


def test_without_the_package_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SheetbendError, match="pip install huggingface_hub"):
        load_adapter("lab/name")


def test_the_environment_alone_switches_the_hub_off(hub_cache):
    """As a user does it: the variables are read when the package is imported."""
    script = "from mergers import load_adapter; print(load_adapter('lab/ViT_lora_mnist').name)"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub_cache), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=hub_cache, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "ViT_lora_mnist", done.stderr


def test_what_reads_as_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    ids = ["org/name", "org/name@v1", "org-1/na.me_2@refs/pr/1"]
    paths = [
        "runs/mnist",
        "mnist",
        "/org/name",
        "./org/name",
        "~/org",
        "a/b/c",
        "../name",
        "org/name@",
        Path("org/name"),
    ]
    assert [source for source in (*ids, *paths) if is_hub_id(source)] == ids


LAYERS = "encoder.layers.0.self_attn"


def published_vision(prefix="vision_model.", r=2, base_layer=".base_layer"):
    """The state dict of KnOTS's vision model: a PEFT model of the tower, and the frozen projection."""
    generator = torch.Generator().manual_seed(0)
    tensors = {"vision_head.weight": torch.randn(2, 4, generator=generator)}
    for module in ("q_proj", "v_proj"):
        path = f"{prefix}base_model.model.{LAYERS}.{module}"
        tensors[f"{path}{base_layer}.weight"] = torch.randn(4, 4, generator=generator)
        tensors[f"{path}{base_layer}.bias"] = torch.randn(4, generator=generator)
        tensors[f"{path}.lora_A.default.weight"] = torch.randn(r, 4, generator=generator)
        tensors[f"{path}.lora_B.default.weight"] = torch.randn(4, r, generator=generator)
    tensors[f"{prefix}base_model.model.embeddings.position_ids"] = torch.arange(3)
    return tensors


@pytest.mark.parametrize("options", [{}, {"prefix": "lora_model.", "base_layer": ""}], ids=["new", "old"])
def test_published_vision_files(options, tmp_path):
    tensors = published_vision(**options)
    torch.save(tensors, tmp_path / "mnist_lora-r16.pt")
    adapter = load_adapter(tmp_path / "mnist_lora-r16.pt")
    assert adapter.name == "mnist_lora-r16"
    assert adapter.base_model is None
    assert list(adapter) == [f"{LAYERS}.q_proj", f"{LAYERS}.v_proj"]
    assert not adapter.heads
    for module, update in adapter.items():
        path = f"{options.get('prefix', 'vision_model.')}base_model.model.{module}"
        expected = tensors[f"{path}.lora_B.default.weight"] @ tensors[f"{path}.lora_A.default.weight"]
        torch.testing.assert_close(update.dense(), expected)
        assert update.A.untyped_storage().nbytes() == update.A.nbytes  # nothing of the base model is held


def test_published_files_are_what_peft_models_hold(tmp_path):
    """A classifier as in the published Llama files: the state dict of a whole PEFT model."""
    peft = pytest.importorskip("peft")

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.ModuleDict({"q_proj": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
            self.score = nn.Linear(4, 3, bias=False)

    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"], modules_to_save=["classifier", "score"])
    model = peft.get_peft_model(Classifier(), config)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape)
    torch.save(model.state_dict(), tmp_path / "snli.pt")
    model.save_pretrained(tmp_path / "snli")
    published, saved = load_adapter(tmp_path / "snli.pt"), load_adapter(tmp_path / "snli")
    assert published.content_hash() == saved.content_hash()
    assert published.heads.keys() == saved.heads.keys() == {"score.weight"}
    assert torch.equal(published.heads["score.weight"], saved.heads["score.weight"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: nn.Linear(2, 2), "holds more than tensors.*save the state dict"),
        (lambda: {"model": nn.Linear(2, 2)}, "holds more than tensors"),
        (lambda: [torch.ones(2)], "holds a list, not a map"),
        (lambda: {"epoch": 3, **published_vision()}, "'epoch', a int instead of a tensor"),
        (lambda: {"a.weight": torch.ones(2, 2)}, "no LoRA tensor.*difference of two full checkpoints"),
        (lambda: {**published_vision(), "x.lora_A.other.weight": torch.ones(2, 2)}, "adapters default, other"),
        (lambda: {**published_vision(), "x.lora_embedding_A.default": torch.ones(2, 2)}, "lora_embedding_A"),
        (
            lambda: {key: value for key, value in published_vision().items() if "lora_B" not in key},
            "has no lora_B",
        ),
        (lambda: {"a/b.lora_A.default.weight": torch.ones(2, 2)}, "no name of a module"),
    ],
)
def test_published_files_that_cannot_be_merged(content, words, tmp_path):
    torch.save(content(), tmp_path / "task.pt")
    with pytest.raises(SheetbendError, match=words) as caught:
        load_adapter(tmp_path / "task.pt")
    assert "task.pt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_published_files(tmp_path):
    torch.save(published_vision(), tmp_path / "task.pt")
    content = (tmp_path / "task.pt").read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"junk"):
        (tmp_path / "task.pt").write_bytes(damaged)
        with pytest.raises(SheetbendError, match="damaged"):
            load_adapter(tmp_path / "task.pt")
    with pytest.raises(SheetbendError, match="does not exist"):
        load_adapter(tmp_path / "other.pt")


def test_heads_beside_an_adapter(tmp_path):
    path = write_peft_folder(tmp_path / "snli", lora_tensors())
    assert load_adapter(path).heads == {}
    heads = {"mnli": torch.ones(3, 2), "snli": torch.full((3, 2), 2.0)}
    torch.save(heads, path / "heads.pt")
    save_file({"class_vectors": torch.ones(4, 2)}, path / "head.safetensors")
    adapter = load_adapter(path)
    assert adapter.heads.keys() == {"class_vectors", "score.weight"}
    assert torch.equal(adapter.heads["score.weight"], heads["snli"])
    assert torch.equal(load_adapter(path, name="mnli").heads["score.weight"], heads["mnli"])
    torch.save({"any": heads["mnli"]}, path / "heads.pt")
    assert torch.equal(load_adapter(path).heads["score.weight"], heads["mnli"])


def test_two_different_heads_of_one_name(tmp_path):
    tensors = {**lora_tensors(), "base_model.model.score.weight": torch.ones(3, 2)}
    path = write_peft_folder(tmp_path / "snli", tensors, modules_to_save=["score"])
    torch.save({"snli": torch.ones(3, 2)}, path / "heads.pt")
    assert list(load_adapter(path).heads) == ["score.weight"]
    torch.save({"snli": torch.zeros(3, 2)}, path / "heads.pt")
    with pytest.raises(SheetbendError, match=r"different score\.weight; remove one"):
        load_adapter(path)
