import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def words(text):
    return [line for line in text.split("\n") if line.strip() and not line.startswith("#")]


def test_every_package_is_listed_and_nothing_else_is_installed(setup_cfg):
    listed = set(words(setup_cfg["options"]["packages"]))
    tops = {"callbacks", "datamodules", "launch", "lightning_modules", "mergers"}
    there = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for top in tops
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert listed == there


def test_constraints_pin_every_requirement(setup_cfg):
    lines = (ROOT / "constraints.txt").read_text().lower().replace("_", "-").splitlines()
    pinned = {line.partition("==")[0] for line in lines if "==" in line}
    wanted = [setup_cfg["options"]["install_requires"], *setup_cfg["options.extras_require"].values()]
    for requirement in (line for text in wanted for line in words(text)):
        assert re.match(r"[\w-]+", requirement.lower().replace("_", "-"))[0] in pinned, requirement


def test_the_installed_command_runs_from_anywhere(tmp_path):
    command = Path(sys.executable).with_name("sheetbend")
    if not command.exists():
        pytest.skip("sheetbend is not installed in this environment; `make install` does it")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("fit", "validate", "test"))


def test_the_repository_speaks_of_no_other_place():
    """No absolute path of somebody's machine in what is tracked."""
    done = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        pytest.skip("not a git checkout, so there is no list of tracked files")
    for name in done.stdout.splitlines():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".yaml", ".cfg", ".toml", ".txt", ".json") and path.is_file():
            assert not re.search(r"/(home|Users|root)/\w", path.read_text()), name


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_is_parsed_and_its_objects_are_built(path, monkeypatch, tmp_path):
    """Data packages and base model are there, so the real classes are made; nothing is trained."""
    from launch.lightning_cli import SheetbendCLI

    built = {}

    def note(self, model, datamodule, ckpt_path=None):
        built.update(model=model, data=datamodule, trainer=self.trainer)

    monkeypatch.setattr(SheetbendCLI, "fit", note)
    monkeypatch.chdir(tmp_path)
    SheetbendCLI(["fit", "--config", str(path)])
    config = yaml.safe_load(path.read_text())
    assert [task.name for task in built["data"].tasks] == config["data"]["init_args"]["tasks"]
    merge = next(c for c in built["trainer"].callbacks if type(c).__name__ == "MergeCallback")
    assert list(merge.mergers) == list(config["trainer"]["callbacks"][0]["init_args"]["mergers"])
    assert not list(tmp_path.iterdir())
