"""Hidden folders in which files are written: locked while their process lives, removed by the next when it is dead."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mergers import workshops
from mergers.files import atomic_folder, atomic_write
from mergers.workshops import remove_abandoned, workshop

ROOT = Path(__file__).resolve().parents[2]
HALF = """
import sys, time
from pathlib import Path
from mergers import files
from mergers.files import atomic_folder
files._exchange = lambda one, other: False
rename = Path.rename
def stop(self, target):
    if "between" in sys.argv and self.parent.name.endswith(".part"):
        print("here", flush=True)
        time.sleep(60)
    return rename(self, target)
Path.rename = stop
with atomic_folder(sys.argv[1]) as folder:
    (folder / "new").write_text("whole")
    if "between" not in sys.argv:
        print("here", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def half_written(tmp_path):
    """Start a process that stops in the middle of replacing ``merged``, or between its two renames."""
    running = []

    def start(*words):
        command = [sys.executable, "-c", HALF, str(tmp_path / "merged"), *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)
        running.append(process)
        assert process.stdout.readline() == "here\n"
        return process

    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "old").write_text("whole")
    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_only_what_dead_processes_left_is_removed(half_written, tmp_path):
    (tmp_path / ".merged.mine.part").mkdir()  # no name of ours
    process = half_written()
    remove_abandoned(tmp_path)
    assert len(names(tmp_path)) == 3
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert names(tmp_path / "merged") == ["old"]
    workshops._swept.discard(tmp_path)
    with atomic_write(tmp_path / "other.txt") as temporary:
        temporary.write_text("")
    assert names(tmp_path) == [".merged.mine.part", "merged", "other.txt"]


def test_what_was_killed_between_two_renames_is_ended_by_the_next(half_written, tmp_path):
    half_written("between").kill()
    for _ in range(1000):
        remove_abandoned(tmp_path.parent, below=True)
        if names(tmp_path) == ["merged"]:
            break
    assert names(tmp_path / "merged") == ["new"]


def test_a_forked_child_holds_no_workshop(tmp_path):
    with workshop(tmp_path / "a") as folder:
        child = os.fork()
        if child == 0:
            os._exit(len(workshops._held))
        assert os.waitpid(child, 0)[1] == 0
        remove_abandoned(tmp_path)
        assert folder.is_dir()
    assert names(tmp_path) == []


def test_two_folders_are_exchanged_at_once(tmp_path, monkeypatch):
    """No moment without a folder at the name: nothing is renamed away."""
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "old").write_text("")
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("renamed"))
    with atomic_folder(tmp_path / "merged") as folder:
        (folder / "new").write_text("")
    assert names(tmp_path / "merged") == ["new"] and names(tmp_path) == ["merged"]


def test_a_disk_without_locks_keeps_what_was_left(tmp_path, monkeypatch):
    (tmp_path / ".a.0a1b2c3d.part").mkdir()
    monkeypatch.setattr(workshops, "fcntl", None)
    workshops._swept.discard(tmp_path)
    with atomic_write(tmp_path / "b") as temporary:
        temporary.write_text("whole")
    assert names(tmp_path) == [".a.0a1b2c3d.part", "b"]


def test_an_error_names_the_place_that_the_user_knows(tmp_path):
    with pytest.raises(OSError, match="No such file") as error, atomic_folder(tmp_path / "merged") as folder:
        (folder / "below" / "a").write_text("")
    assert error.value.filename == str(tmp_path / "merged")
