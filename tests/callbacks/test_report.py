import doctest
import importlib
import json
import shutil

import pytest
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import plots
from callbacks.curves import Curves
from callbacks.event_files import VariantEvents, scalars_of_test
from callbacks.report import repeat_command, report, standard_error, tables
from callbacks.results import Results
from callbacks.results_callback import ResultsCallback
from lightning_modules import Variant
from lightning_modules.scores import Score

VARIANTS = {"pretrained": "no adapters", "finetuned": "own adapter", "ties": "TIES | density 0.2"}
TASKS = ("digits", "mnist")


def scores(level, count=50):
    gain = {"pretrained": 0.0, "finetuned": level, "ties": level / 2}
    found = []
    for i, task in enumerate(TASKS):
        for name in VARIANTS:
            found.append(Score(name, task, "accuracy", 0.5 + 0.1 * i + gain[name], count))
            found.append(Score(name, task, "joint_hits@1", 0.4 + gain[name], count))
    return found + [Score(name, "all", "joint_hits@1", 0.4 + gain[name], 2 * count) for name in VARIANTS]


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
]


class Module(LightningModule):
    """One weight; its scores rise with the steps taken."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.variants = {name: Variant(text) for name, text in VARIANTS.items()}
        self.seed = 7

    def training_step(self, batch, batch_idx):
        return (self.weight - batch.mean()) ** 2

    def validation_step(self, batch, batch_idx):
        pass

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def scores(self):
        return scores(self.trainer.global_step / 100)


class Data(LightningDataModule):
    caveats = ("Crops of one texture come from one photograph.",)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(8, 1), batch_size=2)

    val_dataloader = test_dataloader = train_dataloader

    def fingerprints(self):
        return {task: {"train": "ab" * 32, "test": "cd" * 32} for task in TASKS}


def trainer(folder, *callbacks, epochs=2, **options):
    settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    save = ModelCheckpoint(folder / "checkpoints", filename="last", enable_version_counter=False)
    return Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[*callbacks, *([] if options.get("fast_dev_run") else [save])],
        **{**settings, **options},
    )


def events(folder):
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def points(folder, tag):
    return [(point.step, round(point.value, 4)) for point in events(folder).Scalars(tag)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a fit of two epochs and a test, and the callback."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    callback = ResultsCallback()
    one = trainer(folder, callback)
    module = Module()
    one.fit(module, datamodule=Data())
    one.test(module, datamodule=Data(), verbose=False)
    return folder, callback


def test_a_run_leaves_these_files_and_no_other(run):
    folder, _ = run
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    apart = {name for name in files if name.startswith(("tensorboard", "checkpoints"))}
    assert files - apart == {
        "history.csv",
        "results.json",
        "results.csv",
        "report.md",
        "plots/bars.png",
        "plots/normalised.png",
        "plots/curves.png",
    }
    assert {path.name for path in (folder / "tensorboard").iterdir()} == {*VARIANTS, "report"}


def test_saved_results_are_what_was_measured(run):
    folder, callback = run
    saved = Results.from_json((folder / "results.json").read_text())
    assert saved == callback.results
    assert saved.scores == tuple(scores(0.08))
    assert (saved.meta["run"], saved.meta["seed"], saved.split) == ("tiny", 7, "test")
    assert set(saved.meta["versions"]) == {"torch", "lightning", "peft"}
    assert saved.meta["splits"]["mnist"]["test"] == "cd" * 32
    assert set(saved.meta["seconds"]) == {"fit", "test"}
    assert saved.descriptions == VARIANTS
    assert Results.from_csv((folder / "results.csv").read_text()).scores == saved.scores


def test_history_has_each_validation_once(run):
    folder, _ = run
    history = Curves.from_csv((folder / "history.csv").read_text())
    assert history.steps == (4, 8)  # and none of the sanity check at step 0
    assert len(history.points) == 2 * 2 * 3
    assert history.line("finetuned", "digits") == {4: pytest.approx(0.54), 8: pytest.approx(0.58)}


def test_merged_and_finetuned_share_their_charts(run):
    folder, _ = run
    board = folder / "tensorboard"
    assert points(board / "finetuned", "val_accuracy/mnist") == [(4, 0.64), (8, 0.68)]
    assert points(board / "ties", "val_accuracy/mnist") == [(4, 0.62), (8, 0.64)]
    assert points(board / "ties", "val_accuracy/mean") == [(4, 0.57), (8, 0.59)]
    assert points(board / "ties", "test_accuracy/digits") == [(8, 0.54)]
    assert points(board / "ties", "test_normalised/mean") == [(8, round((0.54 / 0.58 + 0.64 / 0.68) / 2, 4))]
    assert points(board / "ties", "joint_hits@1/all") == [(8, 0.44)]
    tags = {name: set(events(board / name).Tags()["scalars"]) for name in VARIANTS}
    assert tags["ties"] == tags["finetuned"] == tags["pretrained"]


def test_plots_report_and_settings_are_in_tensorboard(run):
    folder, _ = run
    written = events(folder / "tensorboard" / "report")
    assert set(written.Tags()["images"]) == {"plots/bars", "plots/normalised", "plots/curves"}
    image = written.Images("plots/bars")[0]
    assert image.encoded_image_string == (folder / "plots" / "bars.png").read_bytes()
    assert image.width > image.height > 400
    assert "report/text_summary" in written.Tags()["tensors"]
    found = events(folder / "tensorboard" / "ties").summary_metadata
    assert found["_hparams_/session_start_info"].plugin_data.plugin_name == "hparams"


def test_a_test_repeated_leaves_one_point(run, tmp_path):
    folder = shutil.copytree(run[0], tmp_path / "copy")
    again = ResultsCallback(plots=False)
    trainer(folder, again).test(
        Module(), datamodule=Data(), ckpt_path=folder / "checkpoints" / "last.ckpt", verbose=False, weights_only=True
    )
    assert len(points(folder / "tensorboard" / "ties", "test_accuracy/mean")) == 1
    assert points(folder / "tensorboard" / "ties", "val_accuracy/mean") == [(4, 0.57), (8, 0.59)]
    assert again.curves.steps == (4, 8)


def test_a_resumed_run_has_the_whole_curve_once(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer(whole, ResultsCallback(), epochs=4).fit(Module(), datamodule=Data())
    trainer(parts, ResultsCallback(), epochs=2).fit(Module(), datamodule=Data())
    checkpoint = (parts / "checkpoints" / "last.ckpt").rename(tmp_path / "early.ckpt")
    # A third epoch, lost since no checkpoint of it is used.
    trainer(parts, ResultsCallback(), epochs=3).fit(
        Module(), datamodule=Data(), ckpt_path=checkpoint, weights_only=True
    )
    resumed = ResultsCallback()
    trainer(parts, resumed, epochs=4).fit(Module(), datamodule=Data(), ckpt_path=checkpoint, weights_only=True)
    assert resumed.curves.steps == (4, 8, 12, 16)
    assert (parts / "history.csv").read_bytes() == (whole / "history.csv").read_bytes()
    assert (parts / "plots" / "curves.png").read_bytes() == (whole / "plots" / "curves.png").read_bytes()
    for tag in ("val_accuracy/mnist", "val_accuracy/mean", "val_normalised/mean"):
        assert points(parts / "tensorboard" / "ties", tag) == points(whole / "tensorboard" / "ties", tag)
    assert len(points(parts / "tensorboard" / "ties", "val_accuracy/mnist")) == 4


def test_a_phase_replaces_only_its_own_files(tmp_path):
    foreign = tmp_path / "training" / "events.out.tfevents.1.host"
    foreign.parent.mkdir()
    foreign.write_text("of another logger")
    for phase, value in (("fit", 0.1), ("test", 0.2), ("fit", 0.3)):
        written = VariantEvents(tmp_path, phase)
        written.scalars("ties", {phase: value, "absent": None}, 5)
        written.close()
    assert foreign.exists()
    assert points(tmp_path / "ties", "fit") == [(5, 0.3)]
    assert points(tmp_path / "ties", "test") == [(5, 0.2)]
    assert len(list(tmp_path.glob("ties/*"))) == 2


def test_a_test_in_another_process_finds_the_curves(run, tmp_path):
    folder, _ = run
    (tmp_path / "history.csv").write_bytes((folder / "history.csv").read_bytes())
    trainer(tmp_path, ResultsCallback(tensorboard=False)).test(Module(), datamodule=Data(), verbose=False)
    assert (tmp_path / "plots" / "curves.png").read_bytes() == (folder / "plots" / "curves.png").read_bytes()
    assert not (tmp_path / "tensorboard").exists()


def test_screen(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    trainer(tmp_path, ResultsCallback(plots=False)).test(Module(), datamodule=Data(), verbose=False)
    lines = capsys.readouterr().out.splitlines()
    assert "Test accuracy in %, 100 examples of 2 tasks" in lines[1]
    assert lines[-1].startswith(f"{tmp_path}: report.md, results.json, results.csv; curves: tensorboard --logdir")
    assert not (tmp_path / "plots").exists()


def test_the_bar_is_gone_before_the_table(tmp_path, capsys):
    class Bar(ProgressBar):
        def teardown(self, trainer, pl_module, stage):
            print("bar gone")

        def disable(self):
            pass

    results = ResultsCallback(plots=False, tensorboard=False)
    one = trainer(tmp_path, results, Bar(), enable_progress_bar=True)
    one.test(Module(), datamodule=Data(), verbose=False)
    text = capsys.readouterr().out
    assert 0 <= text.index("bar gone") < text.index("Test accuracy")


def test_validate_shows_and_writes_nothing(tmp_path, capsys):
    trainer(tmp_path, ResultsCallback()).validate(Module(), datamodule=Data(), verbose=False)
    assert "Validation accuracy in %" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_fast_dev_run_shows_and_writes_nothing(tmp_path, capsys):
    callback = ResultsCallback()
    one = trainer(tmp_path, callback, fast_dev_run=True)
    module = Module()
    one.fit(module, datamodule=Data())
    one.test(module, datamodule=Data(), verbose=False)
    assert "Test accuracy in %" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_plot_that_fails_costs_no_numbers_and_leaves_nothing_half(tmp_path, capsys, monkeypatch):
    def broken(results):
        raise RuntimeError("no font")

    monkeypatch.setattr(plots, "normalised", broken)
    with pytest.raises(RuntimeError, match="no font"):
        trainer(tmp_path, ResultsCallback()).test(Module(), datamodule=Data(), verbose=False)
    assert {path.name for path in tmp_path.rglob("*")} == {"results.json", "results.csv"}
    assert "scores" in json.loads((tmp_path / "results.json").read_text())
    assert "Test accuracy in %" in capsys.readouterr().out


def test_a_write_that_fails_keeps_the_file_before(tmp_path, monkeypatch):
    callback = ResultsCallback(plots=False, tensorboard=False)
    trainer(tmp_path, callback).test(Module(), datamodule=Data(), verbose=False)
    before = (tmp_path / "results.json").read_text()
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        trainer(tmp_path, callback).test(Module(), datamodule=Data(), verbose=False)
    assert (tmp_path / "results.json").read_text() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_report(run):
    folder, callback = run
    text = (folder / "report.md").read_text()
    assert text.startswith("# tiny: test results\n\n2 tasks, 100 test examples, seed 7.\n")
    assert "| variant | digits | mnist | mean | norm. mean |" in text
    assert "| ties | **54.0** | **64.0** | **59.0** | **93.6** |" in text
    assert "| pretrained | 50.0 | 60.0 | 55.0 | 87.2 |" in text
    assert "| finetuned \\* | 48.0 | 48.0 |" in text and "oracle" in text
    for name in ("bars", "normalised", "curves"):
        assert f"](plots/{name}.png)" in text and (folder / "plots" / f"{name}.png").is_file()
    assert "| ties | TIES \\| density 0.2 |" in text
    assert "| digits | 50 | ± 7.0 | `abababababab` | `cdcdcdcdcdcd` |" in text
    assert "photograph" in text and "noise" in text
    assert tables(callback.results).strip() in text


def test_report_of_little():
    results = Results((Score("ties", "digits", "accuracy", 0.5, 40),))
    text = report(results)
    assert "| ties | **50.0** | **50.0** |" in text
    assert "finetuned" not in text and "hits@" not in text and "How to repeat" not in text and "![" not in text
    assert "1 task, 40 test examples.\n" in text


def test_report_of_an_adaptation():
    meta = {"seconds": {"fit": 168.0, "test": 2.0}}
    results = Results(tuple(scores(0.1)), meta | {"adapts": True})
    pictures = ["curves.png", "kept_rank.png", "coefficients.png"]
    text = report(results, pictures)
    assert "adaptation 2 min 48 s, test 2 s." in text and "fit 2 min" not in text
    assert "![Directions that are kept, per layer and task](plots/kept_rank.png)" in text
    assert "![Learned coefficients, per layer and task](plots/coefficients.png)" in text
    assert "![Validation accuracy over adaptation](plots/curves.png)" in text
    text = report(Results(tuple(scores(0.1)), meta), pictures)
    assert "fit 2 min 48 s, test 2 s." in text and "![Validation accuracy over training](plots/curves.png)" in text


def test_only_an_adaptation_takes_in_pictures_of_one(run, tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "kept_rank.png").write_bytes(b"of another run")
    trainer(tmp_path, ResultsCallback()).test(Module(), datamodule=Data(), verbose=False)
    text = (tmp_path / "report.md").read_text()
    assert "plots/bars.png" in text and "kept_rank" not in text and ", test 0 s, " in text


@pytest.mark.parametrize(("finetuned", "told"), [(0.6, True), (0.7, True), (0.8, False)])
def test_a_task_on_which_finetuning_gained_nothing_is_named(finetuned, told):
    values = {"pretrained": (0.5, 0.7, 0.4), "finetuned": (0.9, finetuned, 0.0), "ties": (0.8, 0.7, 0.1)}
    found = [Score(name, t, "accuracy", v, 50) for name, own in values.items() for t, v in zip("abc", own, strict=True)]
    line = "- Finetuned is no better than pretrained on b: norm. mean is no share of anything there."
    text = report(Results(tuple(found)))
    assert (line in text) is told and "Finetuned is not above 0 on c:" in text
    without = [score for score in found if score.variant != "pretrained"]
    assert "no better" not in report(Results(tuple(without)))


def test_every_number_of_a_test_has_its_tag():
    values = scalars_of_test(Results(tuple(scores(0.1))), "ties")
    assert values["joint_hits@1/mean"] == pytest.approx(0.45)
    assert values["test_normalised/digits"] == pytest.approx(0.55 / 0.6)


def test_standard_error():
    assert standard_error(Score("ties", "digits", "accuracy", 0.5, 100)) == 0.05
    assert standard_error(None) is None
    assert standard_error(Score("ties", "digits", "accuracy", 1.0, 10)) == 0.0


def test_repeat_command(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert repeat_command([str(tmp_path / "launch" / "fit.py"), "--x", "1"]) == "python launch/fit.py --x 1"
    assert repeat_command(["/usr/lib/launch/__main__.py", "fit"]) == "python -m launch fit"


@pytest.mark.parametrize("name", ["results", "curves", "plots", "report", "event_files", "results_callback"])
def test_examples_in_docstrings(name):
    assert doctest.testmod(importlib.import_module(f"callbacks.{name}")).failed == 0
