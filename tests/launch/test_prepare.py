"""`sheetbend prepare` against a hub on this machine, and against folders; the hub's own package does the work."""

import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from datamodules.glue import GLUE_TASKS
from datamodules.nli import NLI_TASKS
from datamodules.sources import downloads
from datamodules.vision_tasks import VISION_TASKS
from launch.checked_data import code_of
from launch.cli import main
from launch.downloads import adapter_files
from lightning_modules.backbones import checkpoint_files
from lightning_modules.open_clip_backbone import open_clip_files
from mergers.adapters.reachable import hub_answers
from tests.datamodules.pictures_on_disk import parquet
from tests.datamodules.test_nli import TWO, as_parquet
from tests.hub_stand_in import COMMIT, HubStandIn, serving
from tests.prepared_model import PreparedModel
from tests.text_stand_ins import word_tokenizer

ROOT = Path(__file__).resolve().parents[2]
DIGITS = [str(digit) for digit in range(10)]
DTD = VISION_TASKS["dtd"].task.class_names
CONFIG = """
model:
  class_path: tests.prepared_model.PreparedModel
  init_args:
    backbone: {backbone}
    adapters: {adapters}
data:
  class_path: {data}
  init_args:
    tasks: {tasks}
    root: {root}
"""


@pytest.fixture(autouse=True)
def own_hub_cache(tmp_path, monkeypatch):
    """Each test begins with an empty cache of the hub, and one of ours."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("SHEETBEND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    hub_answers.cache_clear()
    yield
    hub_answers.cache_clear()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with a model in several forms, an adapter, and two data sets; no file counts as small."""
    stand_in, files = HubStandIn(), tmp_path / "served"
    model = files / "model"
    word_tokenizer().save_pretrained(model)
    (model / "config.json").write_text("{}")
    for name in ("model.safetensors", "pytorch_model.bin", "tf_model.h5"):
        (model / name).write_bytes(name.encode() * 4000)
    (model / "onnx").mkdir()
    (model / "onnx" / "model.onnx").write_bytes(b"onnx")
    adapter = files / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"adapter")
    (adapter / "notes.md").write_text("no one needs this")
    parquet(files / "mnist", {"train": [i % 10 for i in range(12)], "test": [i % 10 for i in range(10)]}, DIGITS)
    (files / "mnist" / "data").rename(files / "mnist" / "mnist")
    parquet(files / "dtd", {"train": [0, 5, 40], "test": [1, 2, 3, 4, 5]}, DTD, start=100)
    stand_in.repositories = {
        "openai/clip": model,
        "lab/adapter": adapter,
        "datasets/ylecun/mnist": files / "mnist",
        "datasets/tanganke/dtd": files / "dtd",
    }
    declare(monkeypatch, mnist={"train": 12, "test": 10}, dtd={"train": 3, "test": 5})
    monkeypatch.setattr(downloads, "RESUMED_FROM", 1000)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    with serving(stand_in) as address:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        stand_in.address = address
        yield stand_in


def declare(monkeypatch, **counts):
    """Let declarations of image tasks say what the tests have."""
    for task, count in counts.items():
        monkeypatch.setitem(VISION_TASKS, task, replace(VISION_TASKS[task], counts=count))


def config(tmp_path, tasks=("mnist", "dtd"), root=None, backbone="openai/clip", adapters=None, data=None):
    path = tmp_path / "config.yaml"
    shown = {"tasks": list(tasks), "root": root or "null", "adapters": adapters or "null"}
    data = data or "datamodules.vision.VisionDataModule"
    path.write_text(CONFIG.format(backbone=backbone, data=data, **shown))
    return str(path)


def prepare(capsys, *words, status=0):
    """Run the command; return what it printed, and its lines of error."""
    capsys.readouterr()
    try:
        main(["prepare", *words])
        code = 0
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code == status, (out, err)
    assert "Traceback" not in out + err
    errors = [line for line in err.splitlines() if line.startswith("sheetbend: error: ")]
    return out, [line.removeprefix("sheetbend: error: ") for line in errors]


def transferred(hub):
    return sorted({name for name, _, sent in hub.served if sent})


def blobs(tmp_path, pattern="*"):
    return sorted((tmp_path / "hub").glob(f"*/blobs/{pattern}"))


def test_all_that_a_run_reads_is_downloaded_and_checked_once(hub, tmp_path, capsys):
    words = ("--config", config(tmp_path, adapters="{mnist: lab/adapter, dtd: lab/adapter}"), "--mbit", "8")
    out, _ = prepare(capsys, *words, "--dry-run")
    assert "ylecun/mnist" in out and "at 8 Mbit/s" in out
    assert not hub.served or transferred(hub) == ["README.md"]
    assert not blobs(tmp_path)

    out, _ = prepare(capsys, *words)
    wanted = ["adapter_config.json", "adapter_model.safetensors", "config.json", "model.safetensors", "tokenizer.json"]
    assert set(wanted) <= set(transferred(hub))
    odd = {"pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "notes.md"}
    assert not odd & set(transferred(hub))
    mnist, dtd = (next(line for line in out.splitlines() if line.startswith(task)).split() for task in ("mnist", "dtd"))
    assert mnist[1:5] == ["12", "2", "8", "10"] and dtd[1:5] == ["3", "1", "4", "47"]
    assert "note: mnist: validation is 20 % of the test set (2 examples" in out
    assert out.endswith("ready\n") and not blobs(tmp_path, "*incomplete*") and not blobs(tmp_path, "*.lock")

    hub.served.clear()
    started = time.monotonic()
    again, _ = prepare(capsys, *words)
    assert "nothing to download" in again and again.endswith("ready: all of it was here and checked before\n")
    assert not hub.served and time.monotonic() - started < 10
    assert mnist in [line.split() for line in again.splitlines()]

    monkeyed = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        offline, _ = prepare(capsys, *words)
    finally:
        constants.HF_HUB_OFFLINE = monkeyed
    assert offline.endswith("checked before\n")


def test_a_download_that_was_cut_off_goes_on_where_it_stopped(hub, tmp_path, capsys):
    words = ("--config", config(tmp_path, ["mnist"]), "--mbit", "8")
    whole = (hub.repositories["openai/clip"] / "model.safetensors").stat().st_size
    hub.cut["model.safetensors"] = 20000
    _, errors = prepare(capsys, *words, status=2)
    assert len(errors) == 1 and "hub model openai/clip cannot be had" in errors[0] and "goes on" in errors[0]
    assert [part.stat().st_size for part in blobs(tmp_path, "*.incomplete")] == [20000]

    hub.cut.clear()
    hub.served.clear()
    out, _ = prepare(capsys, *words)
    assert ("model.safetensors", 20000, whole - 20000) in hub.served
    assert out.endswith("ready\n") and not blobs(tmp_path, "*.incomplete")
    kept = tmp_path / "hub" / "models--openai--clip" / "snapshots" / COMMIT / "model.safetensors"
    assert kept.read_bytes() == (hub.repositories["openai/clip"] / "model.safetensors").read_bytes()


def test_contents_without_the_name_under_which_they_are_read_get_it(hub, tmp_path, capsys):
    """As a process leaves them that is killed between the two; what it left of a small file goes."""
    words = ("--config", config(tmp_path, ["mnist"]), "--mbit", "8")
    prepare(capsys, *words)
    snapshot = tmp_path / "hub" / "models--openai--clip" / "snapshots" / COMMIT
    content = (snapshot / "config.json").resolve()
    (snapshot / "config.json").unlink()
    left = content.with_name(f"{content.name}.0a1b2c3d.incomplete")
    left.write_bytes(b"half")
    hub.served.clear()
    out, _ = prepare(capsys, *words)
    assert (snapshot / "config.json").resolve() == content and not left.exists()
    assert not hub.served and "nothing to download" in out and out.endswith("ready\n")


def test_ctrl_c_keeps_what_has_come(hub, tmp_path, capsys):
    """The whole program, interrupted in the middle of a file, and again in this process."""
    path = config(tmp_path, ["mnist"])
    hub.pause = 0.2
    settings = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path / "hub")}
    start = "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 1000\n"
    start += "from datamodules.sources import downloads; downloads.RESUMED_FROM = 1000\nfrom launch.cli import main\n"
    running = subprocess.Popen(
        [sys.executable, "-c", start + f"main(['prepare', '--config', {path!r}, '--mbit', '8'])"],
        env={**os.environ, **settings, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not any(part.stat().st_size for part in blobs(tmp_path, "*.incomplete")):
        assert running.poll() is None and time.monotonic() < deadline, running.communicate()
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    printed, _ = running.communicate(timeout=60)
    assert running.returncode == 130 and "the same command goes on from there" in printed
    assert "Traceback" not in printed
    kept = blobs(tmp_path, "*.incomplete")[0].stat().st_size
    assert kept > 0
    hub.pause = 0
    hub.served.clear()
    declared = prepare(capsys, "--config", path, "--mbit", "8")[0]
    assert ("model.safetensors", kept) in [(name, first) for name, first, _ in hub.served]
    assert declared.endswith("ready\n")


def test_what_came_damaged_is_not_kept(hub, tmp_path, capsys):
    words = ("--config", config(tmp_path, ["mnist"]), "--mbit", "8")
    hub.damaged.add("model.safetensors")
    _, errors = prepare(capsys, *words, status=2)
    assert "model.safetensors came damaged" in errors[0]
    assert not blobs(tmp_path, "*.incomplete")
    hub.damaged.clear()
    prepare(capsys, *words)


def test_the_speed_is_measured_where_it_is_not_given(hub, tmp_path, capsys):
    out, _ = prepare(capsys, "--config", config(tmp_path), "--dry-run")
    assert "measured on the first bytes of openai/clip" in out and not blobs(tmp_path)


def test_a_disk_that_is_too_small_is_refused_before_the_download(hub, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    _, errors = prepare(capsys, "--config", config(tmp_path), "--mbit", "8", status=2)
    assert len(errors) == 1 and "has 100 bytes left" in errors[0] and "HF_HOME" in errors[0]
    assert not blobs(tmp_path)


@pytest.mark.parametrize("how", ["switched off", "unreachable"])
def test_without_the_hub_all_that_is_missing_is_said_at_once(hub, tmp_path, capsys, monkeypatch, how):
    if how == "switched off":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    adapters = "{mnist: lab/adapter, dtd: lab/adapter}"
    _, errors = prepare(capsys, "--config", config(tmp_path, adapters=adapters), status=2)
    assert time.monotonic() - started < 10
    heads = [line.partition(":")[0] for line in errors[:-1]]
    assert heads == ["backbone missing", "adapters missing", "data missing"]
    reason = "switched off (HF_HUB_OFFLINE)" if how == "switched off" else "cannot be reached"
    assert reason in errors[-1] and str(tmp_path / "hub") in errors[-1]
    assert str(tmp_path / "hub" / "models--<owner>--<name>") in errors[0] and "openai/clip;" in errors[0]
    assert "model.init_args.backbone" in errors[0] and "model.init_args.adapters" in errors[1]
    assert "lab/adapter (adapter of mnist), lab/adapter (adapter of dtd)" in errors[1]
    assert "ylecun/mnist (task mnist: train, test), tanganke/dtd (task dtd:" in errors[2]
    assert str(tmp_path / "hub" / "datasets--<owner>--<name>") in errors[2]
    assert "into <data.init_args.root>/<task name>" in errors[2]


def test_a_gated_or_misspelled_model_is_one_line(hub, tmp_path, capsys):
    hub.gated.add("openai/clip")
    _, errors = prepare(capsys, "--config", config(tmp_path, ["mnist"]), status=2)
    assert len(errors) == 1 and "openai/clip asks for consent" in errors[0]
    assert "hf auth login" in errors[0] and "HF_TOKEN" in errors[0]
    _, errors = prepare(capsys, "--config", config(tmp_path, ["mnist"], backbone="openai/klip"), status=2)
    assert len(errors) == 1 and "openai/klip is not on the hub, or is private" in errors[0]
    assert not hub.served


@pytest.fixture
def local(tmp_path, tiny_clip, monkeypatch):
    """A root with a copy of mnist as the hub has it; returns a function that makes the words of the command."""
    labels = {"train": [i % 10 for i in range(12)], "test": [i % 10 for i in range(10)]}
    parquet(tmp_path / "data" / "mnist", labels, DIGITS)
    declare(monkeypatch, mnist={"train": 12, "test": 10}, dtd={"train": 3, "test": 5})

    def words(*tasks, **options):
        given = {"root": tmp_path / "data", "backbone": tiny_clip, **options}
        return "--config", config(tmp_path, tasks, **given)

    return words


def test_a_local_copy_needs_no_hub(local, tmp_path, capsys):
    out, _ = prepare(capsys, *local("mnist"))
    assert str(tmp_path / "data" / "mnist") in out and "nothing to download" in out and out.endswith("ready\n")
    assert prepare(capsys, *local("mnist"))[0].endswith("checked before\n")
    labels = {"train": [9 - i % 10 for i in range(12)], "test": [i % 10 for i in range(10)]}
    parquet(tmp_path / "data" / "mnist", labels, DIGITS)
    assert prepare(capsys, *local("mnist"))[0].endswith("ready\n")


def test_tasks_that_come_with_packages_are_listed_too(tmp_path, tiny_clip, capsys):
    (tmp_path / "own.yaml").write_text(
        f"model:\n  class_path: tests.prepared_model.PreparedModel\n  init_args: {{backbone: {tiny_clip}}}\n"
        "data:\n  class_path: tests.stand_ins.StandIns\n  init_args: {tasks: [hue, shade]}\n"
    )
    out, _ = prepare(capsys, "--config", str(tmp_path / "own.yaml"), "--dry-run")
    row = next(line for line in out.splitlines() if line.startswith("tasks hue, shade"))
    assert "installed packages" in row and row.endswith("here") and "nothing to download" in out


def test_the_cache_of_pictures_can_be_filled(local, tmp_path, capsys):
    entries = tmp_path / "cache" / "images"
    prepare(capsys, *local("mnist"))
    assert not list(entries.glob("*/pixels.npy"))
    prepare(capsys, *local("mnist"), "--fill-image-cache", "true")
    assert len(list(entries.glob("*/pixels.npy"))) == 2


def test_everything_that_is_off_is_one_line_each(local, tmp_path, capsys, monkeypatch):
    declare(monkeypatch, mnist={"train": 60000, "test": 10})
    parquet(
        tmp_path / "data" / "dtd", {"train": [0, 1, 2], "test": [0, 1, 2, 1, 1]}, ["banded", "blotchy", "plaid-ish"]
    )
    out, errors = prepare(capsys, *local("mnist", "dtd"), status=2)
    assert errors[0].startswith("task mnist: its train split has 12 examples; the published one has 60000; complete")
    assert len(errors) == 2 and "class 'plaid-ish' of the source is none of its 47" in errors[1]
    assert "at fault" in out and "ready" not in out


def test_published_overlaps_are_reported_and_ones_own_refused(local, tmp_path, capsys, tiny_clip):
    names = VISION_TASKS["mnist"].task.class_names
    parquet(tmp_path / "data" / "mnist", {"train": [i % 10 for i in range(12)]}, names)
    parquet(tmp_path / "data" / "mnist", {"test": [1] + [i % 10 for i in range(9)]}, names, start=11)
    out, _ = prepare(capsys, *local("mnist"))
    assert "its train and" in out and "share 1 example, as the data are published" in out
    rows = "text,label\n" + "".join(f"a dog {i},{'ab'[i % 2]}\n" for i in range(20))
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.csv").write_text(rows)
    word_tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "config.json").write_text('{"model_type": "bert"}')
    files = {split: str(tmp_path / f"{split}.csv") for split in ("train", "val", "test")}
    (tmp_path / "own.yaml").write_text(
        "model:\n  class_path: tests.prepared_model.PreparedModel\n"
        f"  init_args: {{backbone: {tmp_path / 'tokenizer'}}}\n"
        "data:\n  class_path: datamodules.text_tables.TextTableDataModule\n"
        f"  init_args: {{tables: {{moods: {{text: text, label: label, splits: {files}}}}}}}\n"
    )
    _, errors = prepare(capsys, "--config", str(tmp_path / "own.yaml"), status=2)
    assert len(errors) == 1 and "task moods: its train and val splits share 20 examples" in errors[0]


def test_folders_that_are_missing_are_said_at_once(local, tmp_path, capsys):
    _, errors = prepare(capsys, *local("mnist", "dtd", "sun397", backbone="openai/clip"), status=2)
    assert [line.split(":")[0] for line in errors][:3] == ["task dtd", "task sun397", "backbone missing"]
    assert str(tmp_path / "data" / "dtd") in errors[0]


def test_a_missing_file_is_said_once(tmp_path, tiny_clip, capsys):
    (tmp_path / "own.yaml").write_text(
        f"model:\n  class_path: tests.prepared_model.PreparedModel\n  init_args: {{backbone: {tiny_clip}}}\n"
        "data:\n  class_path: datamodules.text_tables.TextTableDataModule\n"
        "  init_args: {tables: {moods: {text: text, label: label, class_names: [a, b], "
        f"splits: {{train: {tmp_path / 'none.csv'}, test: {tmp_path / 'none.csv'}}}}}}}}}\n"
    )
    _, errors = prepare(capsys, "--config", str(tmp_path / "own.yaml"), status=2)
    assert len(errors) == 1 and "moods" in errors[0] and "none.csv" in errors[0]


def test_what_was_found_is_not_taken_for_another_declaration(local, capsys, monkeypatch):
    again = "ready: all of it was here and checked before\n"
    prepare(capsys, *local("mnist"))
    assert prepare(capsys, *local("mnist"))[0].endswith(again)
    monkeypatch.setattr(PreparedModel, "max_length", 77)
    assert not prepare(capsys, *local("mnist"))[0].endswith(again)
    declare(monkeypatch, mnist={"train": 60000, "test": 10})
    assert "published one has 60000" in prepare(capsys, *local("mnist"), status=2)[1][0]


def test_what_was_found_is_not_taken_for_that_of_other_code(tmp_path, monkeypatch):
    """A user's datamodule in a file of its own, edited between two calls."""
    path = tmp_path / "own_data.py"
    keys = []
    for value in (1, 1, 2):
        path.write_text(
            f"from datamodules.quickstart import QuickstartDataModule\nVALUE = {value}\n"
            "class Own(QuickstartDataModule):\n    pass\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        sys.modules.pop("own_data", None)
        keys.append(code_of(importlib.import_module("own_data").Own))
    assert keys[0] == keys[1] != keys[2] and len(keys[0]) == 3


def test_declarations_read_the_same_in_every_process():
    for declared in (*VISION_TASKS.values(), *NLI_TASKS.values(), *GLUE_TASKS.values()):
        assert " at 0x" not in repr(declared)


def test_texts_are_checked_with_the_models_tokenizer(tmp_path, capsys, monkeypatch):
    counts = {"train": 12, "validation": 20}
    monkeypatch.setitem(NLI_TASKS, "rte", replace(NLI_TASKS["rte"], counts=counts))
    for seed, (split, count) in enumerate(counts.items()):
        path = tmp_path / "data" / "rte" / f"{split}.parquet"
        as_parquet(path, ("sentence1", "sentence2"), count, seed, TWO, [0, 1])
    word_tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "config.json").write_text('{"model_type": "bert"}')
    given = {"root": tmp_path / "data", "backbone": tmp_path / "tokenizer", "data": "datamodules.nli.NLIDataModule"}
    out, _ = prepare(capsys, "--config", config(tmp_path, ["rte"], **given))
    assert next(line for line in out.splitlines() if line.startswith("rte")).split()[1:5] == ["12", "10", "10", "3"]


def test_bad_words_are_one_line(local, capsys):
    assert "--config missing" in prepare(capsys, "--dry-run", status=2)[1][0]
    assert "number above zero, not '-3'" in prepare(capsys, *local("mnist"), "--mbit", "-3", status=2)[1][0]
    assert "unknown option 'batch'" in prepare(capsys, *local("mnist"), "--batch", "3", status=2)[1][0]
    wrong = prepare(capsys, *local("mnist", "ddt"), status=2)[1]
    assert len(wrong) == 1 and "unknown task 'ddt'" in wrong[0]
    assert "does not exist" in prepare(capsys, "--config", "nowhere.yaml", status=2)[1][0]


def test_help_needs_no_torch():
    code = "import sys; from launch.cli import main\ntry: main(['prepare', '--help'])\n"
    code += "except SystemExit: assert 'torch' not in sys.modules and 'huggingface_hub' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--fill-image-cache" in done.stdout and "options of fit" in done.stdout


def test_one_form_of_the_weights_is_chosen():
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    llama = [
        "config.json",
        "tokenizer.json",
        "original/consolidated.00.pth",
        "original/params.json",
        "LICENSE",
        *shards,
    ]
    assert checkpoint_files(llama) == sorted(["config.json", "tokenizer.json", *shards])
    old = ["config.json", "spiece.model", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack.index.json"]
    assert checkpoint_files(old) == ["config.json", "pytorch_model.bin", "spiece.model"]
    assert checkpoint_files(["config.json", "README.md"]) == []
    adapter = ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "heads.pt"]
    assert adapter_files(["README.md", *reversed(adapter)]) == adapter
    assert adapter_files(["config.json", "model.safetensors"]) == ["config.json", "model.safetensors"]
    assert adapter_files(["README.md"]) == []
    forms = ["open_clip_pytorch_model.bin", "open_clip_model.safetensors", "open_clip_config.json", "README.md"]
    assert open_clip_files(forms) == ["open_clip_config.json", "open_clip_model.safetensors"]
