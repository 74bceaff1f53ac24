"""One process at a time in a folder."""

import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from launch.locks import LOCK, alone
from mergers import SheetbendError

HOLD = """
import multiprocessing, sys, time
from pathlib import Path
from launch.locks import alone
with alone(Path(sys.argv[1])):
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    print(worker.pid, flush=True)
    time.sleep(60)
"""


def test_nothing_is_left_of_a_folder_in_which_nothing_came_of_it(tmp_path):
    with pytest.raises(KeyboardInterrupt), alone(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK).is_file()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with alone(tmp_path / "a"):
        (tmp_path / "a" / "result").write_text("")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["result"]


def test_a_second_one_is_refused_and_takes_nothing_away(tmp_path):
    with alone(tmp_path):
        for _ in range(2):
            with pytest.raises(SheetbendError) as error, alone(tmp_path, "--x"):
                pytest.fail("two at once")
            assert str(error.value) == f"another process works in {tmp_path}; wait for it, or give another --x"
    with alone(tmp_path):
        pass


def test_a_killed_process_holds_nothing_even_if_its_workers_live_on(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(SheetbendError), alone(tmp_path):
            pass
        holder.kill()
        holder.wait()
        os.kill(worker, 0)  # it lives
        with alone(tmp_path):
            pass
    finally:
        os.kill(worker, 9)
        holder.stdout.close()


def _count(folder, number):
    for _ in range(number):
        while True:
            try:
                with alone(folder):
                    value = int((folder / "count").read_text())
                    time.sleep(0.001)
                    (folder / "count").write_text(str(value + 1))
                break
            except SheetbendError:
                time.sleep(0.001)


def test_no_two_hold_it_while_locks_come_and_go(tmp_path):
    (tmp_path / "count").write_text("0")
    workers = [multiprocessing.get_context("spawn").Process(target=_count, args=(tmp_path, 50)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "150"
