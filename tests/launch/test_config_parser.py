"""What a configuration may name, and what it never makes the parser do."""

import pytest
import yaml

from launch.cli import main, printable
from launch.lightning_cli import SheetbendCLI
from launch.yaml_text import EndlessError, load_yaml
from tests.trust.fuzzing.yamls import bomb

CONFIG = """
model:
  class_path: lightning_modules.ImageClassifier
  init_args: {backbone: tiny-clip}
data:
  class_path: tests.stand_ins.StandIns
  init_args: {tasks: [hue]}
trainer:
  accelerator: cpu
  default_root_dir: ROOT/run
"""


@pytest.fixture
def read(tmp_path, monkeypatch, capsys):
    """Read a configuration with some more settings, begin nothing; return what was said against it."""
    monkeypatch.setattr(SheetbendCLI, "_run_subcommand", lambda *_: None)

    def run(more, command="search"):
        tree = yaml.safe_load(CONFIG.replace("ROOT", str(tmp_path)))
        for key, value in more.items():
            tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(tree))
        try:
            main([command, "--config", str(path)])
        except SystemExit as stop:
            assert stop.code == 2
        return capsys.readouterr().err

    return run


def calls(canary):
    return {
        "function": {"class_path": "os.mkdir", "init_args": {"path": str(canary)}},
        "class": {"class_path": "subprocess.Popen", "init_args": {"args": ["mkdir", str(canary)]}},
        "builtin": {"class_path": "builtins.exec", "init_args": {"source": f"import os; os.mkdir({str(canary)!r})"}},
        "kwargs": {"class_path": "pathlib.Path.mkdir", "dict_kwargs": {"self": str(canary)}},
        "writer": {"class_path": "logging.FileHandler", "init_args": {"filename": str(canary)}},
    }


@pytest.mark.parametrize("name", calls(""))
@pytest.mark.parametrize("depth", ["value", "in a list", "in the arguments of a step"])
def test_what_stands_where_anything_may_stand_is_not_called(read, tmp_path, name, depth):
    canary = tmp_path / "canary"
    value = calls(canary)[name]
    if depth == "in a list":
        value = [value]
    if depth == "in the arguments of a step":
        value = [{"class_path": "mergers.KnOTS", "init_args": {"cutoff": value}}]
    read({"search": {"over": {"space": value}, "of": {"mean": {"density": value}}}})
    assert not canary.exists()


@pytest.mark.parametrize("name", calls(""))
@pytest.mark.parametrize("place", ["callbacks", "logger", "strategy", "profiler", "plugins"])
def test_what_is_no_class_of_its_place_is_refused(read, tmp_path, name, place):
    canary = tmp_path / "canary"
    value = calls(canary)[name]
    said = read({"trainer": {place: [value] if place in ("callbacks", "plugins") else value}}, "fit")
    assert said.startswith("sheetbend: error: trainer.") and said.count("\n") == 1
    assert not canary.exists()


def test_keyword_arguments_of_lightnings_own_classes_are_not_called(read, tmp_path):
    canary = tmp_path / "canary"
    theme = {"class_path": "lightning.pytorch.callbacks.RichProgressBar"}
    theme["init_args"] = {"console_kwargs": {"stderr": calls(canary)["class"]}}
    read({"trainer": {"callbacks": [theme]}}, "fit")
    assert not canary.exists()


@pytest.mark.parametrize("function", ["os.mkdir", "tests.launch.test_config_parser.callback"])
def test_a_function_is_no_class(read, tmp_path, function):
    """One that says it returns what belongs there would be called, with what the configuration says."""
    said = read(
        {"trainer": {"callbacks": [{"class_path": function, "init_args": {"path": str(tmp_path / "x")}}]}}, "fit"
    )
    assert said.count("\n") == 1 and not (tmp_path / "x").exists()


def callback(path: str) -> "lightning.pytorch.Callback":  # noqa: F821
    raise AssertionError("it was called")


def test_python_tags_of_yaml_are_refused(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    for tag in ("!!python/object/apply:os.mkdir", "!!python/name:os.mkdir", "!!python/module:os"):
        path.write_text(f"seed_everything: {tag} [{tmp_path / 'canary'}]\n")
        for words in (["fit", "--config", str(path)], ["merge", "--config", str(path), "--dry-run"]):
            with pytest.raises(SystemExit):
                main(words)
            assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (bomb(), "aliases stand for more than 1,000,000 entries"),
        ("a: &a [*a]\n", "stands for what it is part of"),
        ("a: &a {b: {c: *a}}\n", "stands for what it is part of"),
        ("[" * 100_000 + "]" * 100_000, "more than 100 lists and maps"),
        ("{a: " * 100_000 + "}" * 100_000, "more than 100 lists and maps"),
    ],
)
def test_documents_without_end_are_refused(tmp_path, capsys, text, words):
    """Aliases of aliases would take all memory, and of deep lists PyYAML's loader in C dies."""
    with pytest.raises(EndlessError, match=words):
        load_yaml(text)
    path = tmp_path / "config.yaml"
    path.write_text(text)
    for command in (["fit", "--config", str(path)], ["merge", "--config", str(path), "--dry-run"]):
        with pytest.raises(SystemExit) as stop:
            main(command)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1 and words in error


def test_aliases_are_read():
    assert load_yaml("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: [*a, *a]}\n") == {
        "a": {"x": 1},
        "b": {"x": 1},
        "c": {"x": 1, "y": [{"x": 1}, {"x": 1}]},
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"seed_everything: \xff\n", "no text in UTF-8"),
        (b"trainer: 0.5\n", "trainer"),
        (b"seed_everything: 2001-99-99\n", "seed_everything"),
        (b"seed_everything: !!timestamp 2001-99-99\n", "month must be in 1..12"),
    ],
)
def test_odd_bytes_are_one_line(tmp_path, capsys, content, words):
    path = tmp_path / "config.yaml"
    path.write_bytes(CONFIG.replace("ROOT", str(tmp_path)).encode().split(b"trainer")[0] + content)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(path)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and words in error


def test_an_error_writes_nothing_but_its_line_to_the_terminal():
    assert printable("a\nb\r\x1b[2J\u2028") == "a\\nb\\r\\x1b[2J\\u2028"
    assert len(printable("a" * 10**6)) < 2100
