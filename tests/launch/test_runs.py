import pytest
import yaml

from launch.runs import clear, resume_point, training_settings
from mergers import SheetbendError

CONFIG = {
    "seed_everything": 0,
    "model": {"class_path": "M", "init_args": {"learning_rate": 0.1, "lora": {"r": 4}}},
    "data": {"class_path": "D", "init_args": {"tasks": ["a", "b"], "num_workers": 0}},
    "trainer": {"max_epochs": 3, "accelerator": "auto", "callbacks": [{"class_path": "C"}]},
    "overwrite": False,
}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


def changed(path, value):
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    *parents, last = path.split(".")
    inner = config
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return config


def test_settings_are_flat_and_leave_out_what_training_does_not_feel():
    settings = training_settings(CONFIG)
    assert settings["model.init_args.lora.r"] == 4 and settings["data.init_args.tasks"] == ["a", "b"]
    assert not {"overwrite", "trainer.accelerator", "data.init_args.num_workers"} & set(settings)


def test_an_unchanged_run_goes_on(run):
    assert resume_point(run, CONFIG) == run / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    ("path", "value"),
    [("trainer.accelerator", "cpu"), ("trainer.callbacks", []), ("data.init_args.num_workers", 2)],
)
def test_what_training_does_not_feel_may_change(run, path, value):
    assert resume_point(run, changed(path, value)) is not None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed_everything", 1),
        ("model.init_args.learning_rate", 0.2),
        ("model.init_args.lora", {"r": 8}),
        ("data.init_args.tasks", ["a"]),
        ("trainer.max_epochs", 4),
    ],
)
def test_another_run_in_the_folder_is_refused_by_name(run, path, value):
    with pytest.raises(SheetbendError, match=rf"{path}.*--overwrite true") as caught:
        resume_point(run, changed(path, value))
    assert "\n" not in str(caught.value)


def test_an_empty_folder_starts_anew(tmp_path):
    assert resume_point(tmp_path / "none", CONFIG) is None


def test_clear_removes_a_run_and_nothing_else(run):
    (run / "notes.txt").write_text("mine")
    (run / "report.md").write_text("old")
    (run / "adapters" / "a").mkdir(parents=True)
    clear(run)
    assert [path.name for path in run.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "content", ["3", "trainer: 3", "trainer: [a]", "\xff", "a: &a [*a]", "[" * 10_000, "a: 2001-99-99"]
)
def test_a_damaged_configuration_of_an_earlier_run_is_one_line(tmp_path, content):
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "config.yaml").write_bytes(content.encode("latin-1"))
    with pytest.raises(SheetbendError, match=r"config.yaml is damaged; give another --trainer.default_root_dir"):
        resume_point(tmp_path, {"trainer": {}})
