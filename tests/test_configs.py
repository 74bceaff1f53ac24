"""Every experiment: read by the real command line, equal to the published settings, run on small stand-ins."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import callbacks
from datamodules.generation_tasks import families
from datamodules.glue import GLUE_TASKS
from datamodules.nli import NLI_TASKS
from datamodules.vision_tasks import VISION_8, VISION_14, VISION_20
from launch.cli import main
from launch.downloads import needs
from launch.lightning_cli import ConfigurationOnly
from launch.searching.settings import Range
from lightning_modules import Adaptation
from lightning_modules.adapter_folders import find_adapters
from mergers import (
    TSV,
    Cart,
    Core,
    Dare,
    Full,
    Iso,
    KnOTS,
    Mean,
    Merger,
    MetaGPT,
    Star,
    TallMasks,
    TaskArithmetic,
    Ties,
)
from tests import experiment_stand_ins as small

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
EXPERIMENTS = {path.stem: path for path in sorted((CONFIGS / "experiments").glob("*.yaml"))}
PARTS = sorted(path for kind in ("model", "data", "mergers") for path in (CONFIGS / kind).glob("*.yaml"))


def ties(density, **options):
    return Ties(density=density, **options)


def knots_rows(arithmetic, ties_row, dare_row, knots_row, knots_dare_row):
    """The rows of KnOTS; each (density, coefficient) or (drop rate, coefficient)."""
    return {
        "task-arithmetic": arithmetic,
        "ties": Merger(Full(), ties(ties_row[0]), coefficients=ties_row[1]),
        "dare-ties": Merger(Full(), ties(1.0), [Dare(dare_row[0])], dare_row[1]),
        "knots-ties": Merger(KnOTS(), ties(knots_row[0]), coefficients=knots_row[1]),
        "knots-dare-ties": Merger(KnOTS(), ties(1.0), [Dare(knots_dare_row[0])], knots_dare_row[1]),
        "core-tsv-iso": Merger(Core(), TSV(), finish=Iso()),
    }


def adarank_rows(arithmetic, ratio, scaling):
    """The rows of AdaRank's tables that need no adaptation."""
    return {
        "task-arithmetic": Merger(Full(), TaskArithmetic(), coefficients=arithmetic),
        "cart": Merger(Full(), Cart(rank_ratio=ratio, scaling=scaling, rounding="down")),
    }


def adarank(start, coefficient, ratio, steps, batch, rate=1e-3, leave_out=None):
    """One of AdaRank's adaptations: masks and coefficients, on the test data."""
    return Adaptation(
        start,
        coefficient=coefficient,
        rank_ratio=ratio,
        leave_out=leave_out,
        steps=steps,
        batch_size=batch,
        learning_rate=rate,
    )


# The settings as the papers print them, typed in once more.
STAR = {
    "star": Merger(Full(), Mean(), [Star(eta=40)]),
    "simple-average": Merger(Full(), Mean()),
    "ties-global": Merger(Full(), ties(0.2, trim="global")),
    "ties-local": Merger(Full(), ties(0.2, trim="local")),
    "tall-masks-0.3": Merger(Full(), TallMasks(threshold=0.4, agreement=2), coefficients=0.3),
    "tall-masks-0.4": Merger(Full(), TallMasks(threshold=0.4, agreement=2), coefficients=0.4),
    "metagpt": Merger(Full(), MetaGPT()),
}
TSV_M = {"tsv": Merger(Full(), TSV())}
PUBLISHED = {
    "knots_vit_b32": knots_rows(
        Merger(Full(), TaskArithmetic(), coefficients=0.1), (0.3, 0.3), (0.2, 0.6), (0.2, 0.6), (0.1, 0.7)
    )
    | {"iso-c": Merger(Full(), TaskArithmetic(), coefficients=1.3, finish=Iso())},
    "knots_vit_l14": knots_rows(
        Merger(Full(), Mean(), coefficients=0.3), (0.2, 0.3), (0.2, 0.6), (0.2, 0.5), (0.1, 0.5)
    )
    | {"iso-c": Merger(Full(), TaskArithmetic(), coefficients=1.5, finish=Iso())},
    "knots_llama3_8b": knots_rows(
        Merger(Full(), TaskArithmetic(), coefficients=0.5), (1.0, 0.5), (0.8, 0.4), (1.0, 0.5), (0.8, 0.4)
    ),
    "star": STAR,
    "glue_roberta": adarank_rows(0.3, 0.04, 1.6),
    "glue_gpt2": adarank_rows(0.3, 0.01, 1.3),
    "adarank_vit_b32_8": adarank_rows(0.3, 0.16, 2.3) | TSV_M,
    "adarank_vit_b32_14": adarank_rows(0.3, 0.32, 2.8) | TSV_M,
    "adarank_vit_b32_20": adarank_rows(0.05, 0.32, 2.4) | TSV_M,
    "adarank_vit_l14_8": adarank_rows(0.3, 0.16, 3.0) | TSV_M,
    "adarank_vit_l14_14": adarank_rows(0.3, 0.16, 1.25) | TSV_M,
    "adarank_vit_l14_20": adarank_rows(0.3, 0.16, 1.0) | TSV_M,
}
_ADAMERGING = Adaptation(
    "task_arithmetic", coefficient=0.3, learn="coefficients", steps=1000, batch_size=16, learning_rate=1e-3
)
ADAPTATIONS = {
    "adarank_vit_b32_8_ta": adarank("task_arithmetic", 0.3, 1.0, 10_000, 16),
    "adarank_vit_b32_14_ta": adarank("task_arithmetic", 0.3, 1.0, 10_000, 16),
    "adarank_vit_b32_20_ta": adarank("task_arithmetic", 0.05, 1.0, 10_000, 16),
    "adarank_vit_l14_8_ta": adarank("task_arithmetic", 0.3, 1.0, 10_000, 4),
    "adarank_vit_l14_14_ta": adarank("task_arithmetic", 0.3, 1.0, 100_000, 2),
    "adarank_vit_l14_20_ta": adarank("task_arithmetic", 1.0, 0.3, 100_000, 2),
    "adarank_vit_b32_8_cart": adarank("cart", 2.3, 0.16, 10_000, 16),
    "adarank_vit_b32_14_cart": adarank("cart", 2.8, 0.32, 10_000, 16),
    "adarank_vit_b32_20_cart": adarank("cart", 2.4, 0.32, 10_000, 16),
    "adarank_vit_l14_8_cart": adarank("cart", 3.0, 0.16, 10_000, 4),
    "adarank_vit_l14_14_cart": adarank("cart", 1.25, 0.16, 100_000, 2),
    "adarank_vit_l14_20_cart": adarank("cart", 1.0, 0.16, 100_000, 2),
    "adamerging_vit_b32_8": _ADAMERGING,
    "adamerging_vit_l14_8": _ADAMERGING,
    "adarank_roberta_ta": adarank("task_arithmetic", 0.3, 1.0, 5000, 8, 5e-5, "embeddings"),
    "adarank_roberta_cart": adarank("cart", 1.6, 0.04, 5000, 8, 1e-4, "embeddings"),
    "adarank_gpt2_ta": adarank("task_arithmetic", 0.3, 1.0, 5000, 8, 5e-5, "wte|wpe"),
    "adarank_gpt2_cart": adarank("cart", 1.3, 0.01, 5000, 8, 5e-5, "wte|wpe"),
}
TASKS = {
    "vision_8": VISION_8,
    "vision_14": VISION_14,
    "vision_20": VISION_20,
    "nli_6": NLI_TASKS,
    "glue_7": GLUE_TASKS,
    "star_flan_t5": families()["flan_t5"],
    "star_llama3_2": families()["llama_instruct"],
    "star_mistral": families()["mistral_instruct"],
}
# Learning rate, weight decay, schedule, warm-up steps, share of warm-up.
TRAINING = {
    "clip_vit_b32": (1e-5, 1e-1, "cosine", 500, 0.0),
    "clip_vit_l14": (3e-4, 1e-4, "cosine", 500, 0.0),
    "llama3_8b": (3e-5, 0.01, "linear", 0, 0.06),
}


def parts_of(name):
    """The names of the files that an experiment is made of, by kind."""
    text = yaml.safe_load(EXPERIMENTS[name].read_text())
    files = {"model": text["model"], "data": text["data"], "mergers": text["trainer"]["callbacks"]}
    return {kind: Path(file).stem for kind, file in files.items()}


def model_settings(name):
    """The arguments of an experiment's model as they stand in its file."""
    return yaml.safe_load((CONFIGS / "model" / f"{parts_of(name)['model']}.yaml").read_text())["init_args"]


def tasks_of(name):
    """The tasks of an experiment."""
    return list(TASKS[parts_of(name)["data"]])


# Those with published weights differ from the others in the file of the model alone, which the runs below read.
@pytest.fixture(scope="module", params=[name for name in EXPERIMENTS if not name.endswith("_published")])
def experiment(request):
    """An experiment as the command line reads it, with its objects."""
    cli = ConfigurationOnly(["--config", str(EXPERIMENTS[request.param]), "--trainer.accelerator", "cpu"])
    cli.name, cli.parts = request.param, parts_of(request.param)
    return cli


def merge_callback(cli):
    (callback,) = cli.config_init["fit"]["trainer"]["callbacks"]
    assert isinstance(callback, callbacks.MergeCallback)
    return callback


def test_every_part_belongs_to_an_experiment():
    used = {CONFIGS / kind / f"{stem}.yaml" for name in EXPERIMENTS for kind, stem in parts_of(name).items()}
    assert used == set(PARTS)
    assert {path for path in CONFIGS.rglob("*") if path.is_file()} == {
        *EXPERIMENTS.values(),
        *PARTS,
        CONFIGS / "comparison.yaml",
        CONFIGS / "quickstart.yaml",
    }


def test_every_experiment_is_documented():
    text = (CONFIGS.parent / "docs" / "experiments.md").read_text()
    listed = [name for line in text.splitlines() for name in re.findall(r"`(\w+)`", re.match(r"\| (.*?) \||", line)[0])]
    assert sorted(name for name in listed if name in EXPERIMENTS) == sorted(EXPERIMENTS)


def test_mergers_have_the_published_settings(experiment):
    callback = merge_callback(experiment)
    assert callback.mergers == PUBLISHED[experiment.parts["mergers"]]
    assert not callback.while_fitting
    assert callback.ensemble == (experiment.parts["mergers"] == "knots_vit_b32")


def test_adaptations_have_the_published_settings(experiment):
    assert experiment.config_init["fit"]["adaptation"] == ADAPTATIONS.get(experiment.name)


def test_a_search_has_the_published_grids(experiment):
    search = experiment.config_init["fit"]["search"]
    assert (search is not None) == experiment.name.startswith("knots_")
    if search is not None:
        spaces = search.spaces(merge_callback(experiment).mergers)
        assert search.strategy == "one_at_a_time" and search.metric == "normalised"
        for name, space in spaces.items():
            coefficients = space["coefficients"]
            tenths = coefficients.values() if isinstance(coefficients, Range) else coefficients
            assert tenths[:10] == [number / 10 for number in range(1, 11)], name
        assert spaces["knots-ties"]["method.density"].values() == [number / 10 for number in range(1, 11)]
        drops = spaces["knots-dare-ties"]["transforms.0.drop_rate"]
        assert drops == [0.99, *(number / 10 for number in range(9, 0, -1))]


def test_tasks_are_the_published_ones(experiment):
    names = [task.name for task in experiment.datamodule.tasks]
    assert sorted(names) == sorted(TASKS[experiment.parts["data"]])
    merge_callback(experiment).check(names)


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if "adapters" in model_settings(name)])
def test_published_weights_are_named_for_every_task(name):
    parts, source = parts_of(name), model_settings(name)["adapters"]
    tasks = tasks_of(name)
    places = find_adapters(source, tasks)
    assert len(set(places.values())) == len(tasks)
    named = {task for each in EXPERIMENTS if parts_of(each)["model"] == parts["model"] for task in tasks_of(each)}
    assert not isinstance(source, dict) or set(source) == named
    for place in places.values():  # RoBERTa's are folders of one repository, to be downloaded whole
        assert place.startswith("checkpoints/") if parts["model"] == "roberta_base" else place.count("/") == 1
    model = SimpleNamespace(backbone_name=model_settings(name)["backbone"], adapter_source=source)
    data = SimpleNamespace(task_names=tasks, check=lambda task: None, sources=lambda task: {})
    prepared = {need.user: need.place for need in needs(model, data)}
    for task, place in places.items():
        found = prepared[f"adapter of {task}"]
        assert str(found if isinstance(found, Path) else found.name) == place


def test_training_has_the_published_settings(experiment):
    model, data = experiment.model, experiment.datamodule
    settings = TRAINING.get(experiment.parts["model"])
    trainer = experiment.config["fit"]["trainer"]
    assert trainer["default_root_dir"] == f"runs/{experiment.name}"
    if settings is None:
        return
    assert (model.lora.r, model.lora.alpha, model.lora.dropout) == (16, 16, 0.1)
    assert model.lora.target_modules[:3] == ["q_proj", "k_proj", "v_proj"] and len(model.lora.target_modules) == 4
    assert settings == (
        model.learning_rate,
        model.weight_decay,
        model.schedule,
        model.warmup_steps,
        model.warmup_ratio,
    )
    assert (model.patience, model.min_delta, model.label_smoothing) == (5, 1e-3, 0.0)
    if experiment.parts["data"] == "vision_8":
        assert (data.batch_size, data._given_batches, trainer["max_epochs"]) == (32, 2000, 25)


# Small runs: tasks of each kind of metric, what writes their data, and the layers that published weights change.
RUNS = {
    "vision_8": (("dtd", "mnist", "svhn"), small.write_images, ["q_proj", "k_proj", "v_proj", "out_proj"]),
    "vision_14": (("mnist", "stl10"), small.write_images, ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]),
    "vision_20": (("rendered_sst2", "kmnist"), small.write_images, ["q_proj", "v_proj", "fc1"]),
    "nli_6": (("snli", "qnli", "scitail"), small.write_nli, ["q_proj", "k_proj", "v_proj", "o_proj"]),
    "glue_7": (("cola", "mrpc", "mnli"), small.write_glue, ["query", "value", "dense", "c_attn"]),
    "star_flan_t5": (("stsb", "hella"), small.write_generation("flan_t5"), ["q", "v"]),
    "star_llama3_2": (("stsb", "cb"), small.write_generation("llama_instruct"), ["q_proj", "v_proj"]),
    "star_mistral": (("qasc", "dream"), small.write_generation("mistral_instruct"), ["q_proj", "v_proj"]),
}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory, tiny_clip):
    return small.small_backbones(tmp_path_factory.mktemp("backbones"), tiny_clip)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """A folder of data by the name of the configuration of the data."""
    folder = tmp_path_factory.mktemp("data")
    for name, (tasks, write, _) in RUNS.items():
        for task in tasks:
            write(folder / name, task)
    return folder


def published(model, backbone, tasks, targets, folder, full=False):
    """Write weights as they are published for ``model``, ``full`` models or not; return the options that name them."""
    for task in tasks:
        if model in ("roberta_base", "gpt2"):
            classes = len(GLUE_TASKS[task].task.class_names)
            small.write_checkpoint(model, backbone, targets, folder / task, classes, pickled=model == "roberta_base")
        elif full or (model == "flan_t5_large" and task == "hella"):
            small.write_checkpoint(model, backbone, targets, folder / task)
        else:
            small.write_adapter(model, backbone, targets, folder / task)
    options = ["--model.init_args.adapters", f"{folder}/{{task}}"]
    if model == "llama3_8b":
        small.write_heads(folder / "heads.pt", tasks, width=16)
        options += ["--model.init_args.heads", str(folder / "heads.pt")]
    return options


# Of the adaptations each model, set of tasks, start and what is learned; the others differ from these in numbers alone.
ADAPTED = {
    "adarank_vit_b32_8_ta",
    "adarank_vit_b32_20_cart",
    "adarank_vit_l14_14_cart",
    "adamerging_vit_l14_8",
    "adarank_roberta_cart",
    "adarank_gpt2_ta",
}


# One of each model, one of each kind of adaptation; the others differ from them in numbers.
FAST = {
    "adamerging_vit_l14_8",
    "adarank_gpt2_ta",
    "adarank_vit_b32_20_cart",
    "glue_roberta",
    "knots_llama3_8b_published",
    "knots_vit_b32",
    "star_flan_t5_large",
    "star_mistral_7b",
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in FAST else pytest.mark.slow)
        for name in EXPERIMENTS
        if name in ADAPTED or name not in ADAPTATIONS
    ],
)
@pytest.mark.filterwarnings("ignore:hardly a mask can change")  # in two steps
def test_an_experiment_runs_on_stand_ins(name, backbones, roots, tmp_path):
    parts = parts_of(name)
    tasks, _, targets = RUNS[parts["data"]]
    model = parts["model"].removesuffix("_published").removesuffix("_full")
    backbone = backbones[model]
    words = [
        *("--config", str(EXPERIMENTS[name])),
        *("--model.init_args.backbone", backbone),
        *("--data.init_args.root", str(roots / parts["data"])),
        *("--data.init_args.tasks", f"[{', '.join(tasks)}]"),
        *("--data.init_args.num_workers", "0"),
        *("--trainer.default_root_dir", str(tmp_path / "run")),
        *("--trainer.accelerator", "cpu"),
        *("--trainer.enable_progress_bar", "false"),
    ]
    if parts["data"].startswith("star_"):
        words += ["--data.init_args.samples", "4", "--data.init_args.eval_batch_size", "32"]
    output, expected = tmp_path / "run", {"pretrained", "finetuned", *PUBLISHED[parts["mergers"]]}
    if "adapters" in model_settings(name):
        full = parts["model"].endswith("_full")
        words += published(model, backbone, tasks, targets, tmp_path / "published", full)
        if name in ADAPTATIONS:
            label = ADAPTATIONS[name].label
            words += ["--adaptation.steps", "2", "--adaptation.look_every", "2", "--trainer.logger", "false"]
            main(["adapt", *words])
            output, expected = output / "adaptations" / label, expected | {label, f"{label}-start"}
        else:
            main(["test", *words])
    else:
        words += ["--model.init_args.warmup_steps", "0", "--model.init_args.warmup_ratio", "0"]
        words += ["--trainer.limit_train_batches", str(2 * len(tasks)), "--trainer.limit_val_batches", "1"]
        main(["fit", *words, "--trainer.max_epochs", "1"])
        assert all((tmp_path / "run" / "adapters" / task / "adapter_config.json").is_file() for task in tasks)
    results = json.loads((output / "results.json").read_text())
    if parts["mergers"] == "knots_vit_b32":
        expected.add("ensemble")
    for task in tasks:
        assert {row["variant"] for row in results["scores"] if row["task"] == task} == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:hardly a mask can change")  # in two steps
def test_the_quickstart_adapts_adapters_that_fit_has_left(tmp_path):
    """One file says how adapters are trained and how their merge is learned."""
    tasks = ("digits", "textures")
    for task in tasks:
        small.write_adapter("clip_vit_b32", small.TINY_CLIP, ["q_proj", "v_proj"], tmp_path / "adapters" / task)
    words = [
        *("--config", str(CONFIGS / "quickstart.yaml")),
        *("--data.init_args.tasks", f"[{', '.join(tasks)}]"),
        *("--adaptation.steps", "2"),
        *("--adaptation.batch_size", "4"),
        *("--adaptation.look_every", "2"),
        *("--data.init_args.eval_batch_size", "8"),
        *("--trainer.default_root_dir", str(tmp_path)),
        *("--trainer.accelerator", "cpu"),
        *("--trainer.logger", "false"),
        *("--trainer.limit_val_batches", "1"),
        *("--trainer.limit_test_batches", "1"),
        *("--trainer.enable_progress_bar", "false"),
    ]
    main(["adapt", *words])
    results = json.loads((tmp_path / "adaptations" / "adarank-ta+d" / "results.json").read_text())
    variants = {row["variant"] for row in results["scores"] if row["task"] == "digits"}
    assert {"adarank-ta+d", "task-arithmetic", "knots-ties", "finetuned"} <= variants
