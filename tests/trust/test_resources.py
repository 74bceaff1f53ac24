"""Ctrl-C ends a command soon, with one short message and nothing half-written; what a command took it gives back."""

import contextlib
import gc
import hashlib
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

import mergers.output
from launch.cli import main
from launch.interrupts import INTERRUPTED, PATIENCE, prompt
from tests.launch.reporting.fabricated import make_config, make_results
from tests.launch.reporting.fabricated import write as write_run
from tests.launch.test_cli import CONFIG
from tests.trust.kills import reference
from tests.trust.server import PROMPT, Ended, alive
from tests.trust.snapshots import differences, half_written
from tests.trust.works import WORKS, start

ROOT = Path(__file__).resolve().parents[2]
HERE = "tests.trust.test_resources"
MOMENTS = 20
FEW = {"merge": 3, "fit, workers": 1}  # so many that the fast suite stays fast
SAME = ("merge --overwrite", "fit, max_steps at an epoch's end")  # other commands in this
TWO_WORKERS = ("--data.num_workers", "2")


def _tested_run(folder):
    write_run(folder / "run", make_results(), make_config(), steps=3)


def _others():
    """The commands that are not killed: what they write, others do as well."""
    test, merge = WORKS["test"], WORKS["merge"]
    return (
        replace(test, name="validate", words=("validate", *test.words[1:])),
        replace(test, name="analyse", words=("analyse", "tasks", *test.words[1:])),
        replace(merge, name="inspect", words=("inspect", "adapters/pets", "adapters/cars"), setup=None),
        replace(merge, name="report", words=("report", "run"), make=_tested_run, setup=None),
        *(
            replace(WORKS[name], name=f"{name}, workers", words=(*WORKS[name].words, *TWO_WORKERS))
            for name in ("fit", "test", "search", "adapt")
        ),
    )


COMMANDS = {name: work for name, work in WORKS.items() if name not in SAME} | {work.name: work for work in _others()}
TRIES = 10
SAID = re.compile(r"^interrupted\b", re.MULTILINE)
ENDING = 0.5  # seconds; a command that ends in them with success had ended before it heard
ORPHANED = 8.0  # seconds in which workers end whose process was killed: PyTorch's look for it every 5 s


# In the processes of the commands.


def deaf(folder):
    """Let a merge swallow Ctrl-C for a minute."""

    def save_merged(*_, **__):
        threading.Timer(0.2, (folder / "tmp" / "deaf").mkdir).start()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(KeyboardInterrupt):
                time.sleep(60)

    mergers.output.save_merged = save_merged


def computing(folder):
    """Let a merge compute for a minute without a look at signals."""

    def save_merged(*_, **__):
        threading.Timer(0.2, (folder / "tmp" / "deaf").mkdir).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)

    mergers.output.save_merged = save_merged


def stray(folder):
    """Leave a process behind."""
    subprocess.Popen(["sleep", "60"])


def fails_in_training(folder):
    """Let the second step of a training fail."""
    from lightning_modules import LoRATasks

    whole = LoRATasks.training_step

    def training_step(self, *args):
        if self.global_step == 1:
            raise ValueError("broken")
        return whole(self, *args)

    LoRATasks.training_step = training_step


# The tests.


def moments(name, whole, count):
    """Yield moments at which a command is interrupted: random times, and random changes of the file system in turn."""
    generator = random.Random(name)
    for number in range(count):
        if number % 2 and whole.ended.changes:
            yield {"interrupt_before": generator.randrange(len(whole.ended.changes))}
        else:
            yield {"interrupt_after": generator.uniform(0, whole.ended.seconds)}


def wrong(ended, usual=""):
    """Return what is wrong with the end of a command that was interrupted; ``usual`` it prints to stderr anyway."""
    faults = []
    if ended.status != INTERRUPTED:
        faults.append(f"it ended with {ended.status}")
    if ended.waited > PROMPT:
        faults.append(f"it took {ended.waited:.1f} s to end")
    if ended.alive:
        faults.append(f"left alive: {ended.alive}")
    noise = set(ended.err.splitlines()) - set(usual.splitlines())
    if noise or "Traceback" in ended.out or len(SAID.findall(ended.out)) > 1:
        faults.append(f"it said {ended.out[-500:]!r} {ended.err[-3000:]!r}")
    return faults


def silent_end(ended, whole):
    """Return what is wrong if a command does not say that it was interrupted; there is no need once all was said."""
    ends = [one.out.splitlines()[-1:] for one in (ended, whole)]
    return [] if SAID.search(ended.out) or ends[0] == ends[1] else [f"it did not say so: {ended.out[-500:]!r}"]


def interrupt(server, work, base, whole, moment):
    """Interrupt a command at a moment; return how it ended."""
    for _ in range(TRIES):
        folder = start(work, base)
        ended = server.run(work.job(folder, **moment))
        if "interrupt_before" in moment or (ended.waited is not None and (ended.status or ended.waited > ENDING)):
            break
        moment["interrupt_after"] *= 0.8  # this time it was faster
    assert ended.waited is not None, (moment, ended)
    faults = wrong(ended, whole.ended.err) + silent_end(ended, whole.ended)
    faults += [f"half-written: {line}" for line in half_written(folder)]
    again = server.run(work.job(folder))
    if again.status:
        faults.append(f"the command given again ends with {again.status}: {(again.err or again.out)[-500:]}")
    return ended.waited, faults + differences(work.left(folder), whole.contents)


@pytest.fixture
def interrupted(server, base, tally):
    """Interrupt a command at so many moments; fail if anything was lost."""

    def run(name, count):
        work, row = COMMANDS[name], tally(name, "SIGINT")
        whole = reference(server, work, base)
        longest = 0.0
        for moment in moments(name, whole, count):
            waited, faults = interrupt(server, work, base, whole, moment)
            longest = max(longest, waited)
            at = whole.ended.changes[moment["interrupt_before"]] if "interrupt_before" in moment else ""
            row.add(f"{moment} {at}", faults)
        print(f"{name}: at most {longest:.2f} s from Ctrl-C to the end")
        assert row.injected == count and not row.lost, "\n".join(row.lost[:10])

    return run


@pytest.mark.parametrize("name", FEW)
def test_ctrl_c_at_a_few_moments(interrupted, name):
    interrupted(name, FEW[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_at_many_moments(interrupted, name):
    interrupted(name, MOMENTS)


@pytest.mark.parametrize("how", ["deaf", "computing"])
@pytest.mark.parametrize(("again", "longest"), [(None, PROMPT), (0.3, 0.8 * PATIENCE)])
def test_what_does_not_hear_ctrl_c_is_ended_and_at_a_second_one_at_once(server, base, how, again, longest):
    work = replace(WORKS["merge"], setup=f"{HERE}:{how}")
    folder = start(work, base)
    before = sorted(folder.rglob("*"))
    ended = server.run(work.job(folder, interrupt_before="os.mkdir tmp/deaf", interrupt_again=again))
    assert not wrong(ended)
    assert ended.waited < longest
    assert "give the same command again" in ended.out
    assert [path for path in sorted(folder.rglob("*")) if path not in before and path.is_file()] == []


def test_the_harness_sees_what_is_wrong(server, base):
    fine = Ended(INTERRUPTED, 1.0, "\ninterrupted: kept\n", "usual\n", (), (), 0.2, ())
    assert wrong(fine, "usual\n") == []
    for fault in (
        {"status": 0},
        {"waited": PROMPT + 0.1},
        {"alive": ("sleep",)},
        {"err": "usual\nTraceback\n"},
        {"out": "interrupted: a\ninterrupted: b\n"},
    ):
        assert len(wrong(replace(fine, **fault), "usual\n")) == 1
    assert not silent_end(fine, fine)
    assert not silent_end(replace(fine, out="all\nsaid\n"), replace(fine, out="all\nsaid\n"))
    assert len(silent_end(replace(fine, out="all\n"), replace(fine, out="all\nsaid\n"))) == 1
    work = replace(WORKS["merge"], setup=f"{HERE}:stray")
    ended = server.run(work.job(start(work, base)))
    assert ended.status == 0
    assert ["sleep" in one for one in ended.alive] == [True]


def test_workers_end_with_a_run_that_fails(server, base):
    work = replace(COMMANDS["fit, workers"], setup=f"{HERE}:fails_in_training")
    ended = server.run(work.job(start(work, base)))
    assert ended.status == 1
    assert "ValueError: broken" in ended.err
    assert ended.alive == ()


def _held():
    """Return what a process holds: files, threads, children."""
    gc.collect()
    files = len([*Path("/proc/self/fd").iterdir()])
    return files, threading.active_count(), len(multiprocessing.active_children())


def test_commands_in_one_process_give_back_what_they_took(tiny_clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SHEETBEND_CACHE", str(tmp_path / "cache"))
    (tmp_path / "in.yaml").write_text(CONFIG.format(model=tiny_clip, root=tmp_path / "run"))
    config = ["--config", str(tmp_path / "in.yaml"), *TWO_WORKERS, "--trainer.max_epochs", "1"]
    adapters = [str(tmp_path / "run" / "adapters" / name) for name in ("hue", "shade")]
    held = []
    for _ in range(3):
        main(["fit", *config, "--overwrite", "true"])
        main(["test", *config, "--overwrite", "true"])
        main(["merge", "--adapters", *adapters, "--output", str(tmp_path / "merged"), "--overwrite"])
        held.append(_held())
    assert held[1] == held[2]  # what the first one keeps are the pools of libraries


@pytest.mark.slow
@pytest.mark.parametrize("whom", [os.killpg, os.kill])
def test_ctrl_c_ends_two_processes(tiny_clip, tmp_path, whom):
    """It comes to all from a terminal, and to the first alone from a scheduler."""
    (tmp_path / "in.yaml").write_text(CONFIG.format(model=tiny_clip, root=tmp_path / "run"))
    options = ["--trainer.devices", "2", "--trainer.max_epochs", "300", "--data.num_workers", "1"]
    command = [sys.executable, "-m", "launch", "fit", "--config", str(tmp_path / "in.yaml"), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        run = subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=ROOT, start_new_session=True)
    try:
        end = time.monotonic() + 120
        while "epoch 1/" not in (tmp_path / "out").read_text():
            assert run.poll() is None and time.monotonic() < end, (tmp_path / "err").read_text()
            time.sleep(0.1)
        whom(run.pid, signal.SIGINT)
        began = time.monotonic()
        assert run.wait(PROMPT) == INTERRUPTED
        assert alive(run.pid, until=began + ORPHANED) == []
        assert (tmp_path / "out").read_text().count("interrupted") == 1
        assert "Traceback" not in (tmp_path / "err").read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)


def silent(folder):
    """Ignore Ctrl-C from the start, as what a script runs in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.parametrize("name", ["merge", "test"])
def test_a_command_in_the_background_ignores_ctrl_c(server, base, name):
    work = replace(WORKS[name], setup=f"{HERE}:silent")
    folder = start(work, base)
    ended = server.run(work.job(folder, interrupt_before=2))
    assert ended.status == 0
    assert "interrupted" not in ended.out


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("then", ["swallowed", "broken", "another exit"])
def test_whatever_becomes_of_a_signal_the_status_tells_of_it(capsys, number, status, then):
    with pytest.raises(SystemExit) as stop, prompt():
        try:
            os.kill(os.getpid(), number)
            time.sleep(1)
        except BaseException:
            if then == "broken":
                raise RuntimeError("in tidying up") from None
            if then == "another exit":
                raise SystemExit(1) from None
    assert stop.value.code == status
    assert capsys.readouterr().out.count("what was finished is kept") == 1


DEAF = """
import os, sys, time
from launch.interrupts import prompt
with prompt():
    open(sys.argv[1] + "x", "w").write(str(os.getpid()))
    os.rename(sys.argv[1] + "x", sys.argv[1])
    try:
        time.sleep(9)
    except BaseException:
        time.sleep(9)
"""


@pytest.mark.parametrize("gone", [">&-", "| true"])
def test_ctrl_c_ends_what_has_nobody_to_print_to(tmp_path, gone):
    """And a command whose output goes to a program that the same Ctrl-C has ended."""
    (tmp_path / "deaf.py").write_text(DEAF)
    command = f"{sys.executable} {tmp_path}/deaf.py {tmp_path}/pid"
    script = f"{{ {command}; echo $? > {tmp_path}/status; }} {gone}"
    shell = subprocess.Popen(["bash", "-c", script], env=os.environ | {"PYTHONPATH": str(ROOT)})
    end = time.monotonic() + 30
    while not (tmp_path / "pid").exists() and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.2)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGINT)
    began = time.monotonic()
    shell.wait(30)
    assert time.monotonic() - began < PROMPT
    assert (tmp_path / "status").read_text() == f"{INTERRUPTED}\n"
