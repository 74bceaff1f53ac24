"""A disk that fills up, and one that may not be written: one line, and afterwards the same command ends as ever."""

import pytest

from tests.trust.disks import disk, goes_on, hindered, mount_again, reference_on_a_disk
from tests.trust.snapshots import contents
from tests.trust.works import WORKS, start

QUICK = ("merge", "merge --overwrite", "merge --seeds")
PAGE = 4096
# Of what a run writes, the shares that fit on its disk.
SHARES = (0.0, 0.02, 0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95)


def full_disk(server, base, tally, name):
    work, row = WORKS[name], tally(name, "full disk")
    whole, before, after = reference_on_a_disk(server, work, base)
    for share in SHARES:
        size = before + int(share * (after - before)) // PAGE * PAGE
        with disk(base / "work"):
            folder = start(work, base)
            mount_again(folder, f"size={size}")
            ended, faults = hindered(server, work, folder)
            if share == 0.0 and ended.status != 2:
                faults.append("the disk was not full")
            if ended.status == 2 and not ("space" in ended.err or "bytes left" in ended.err or "kB left" in ended.err):
                faults.append(f"it does not say why: {ended.err}")
            mount_again(folder, "size=256m")
            faults += goes_on(server, work, folder, whole)
        row.add(f"{share:.0%} of what is written fits", faults)
    assert not row.lost, "\n".join(row.lost)


def read_only(server, base, tally, name):
    work, row = WORKS[name], tally(name, "read-only folder")
    whole, *_ = reference_on_a_disk(server, work, base)
    with disk(base / "work"):
        folder = start(work, base)
        before = contents(folder)
        mount_again(folder, "ro")
        ended, faults = hindered(server, work, folder)
        faults += [] if ended.status == 2 else [f"it ended with {ended.status}"]
        faults += [] if contents(folder) == before else ["it wrote"]
        mount_again(folder, "rw")
        faults += goes_on(server, work, folder, whole)
    row.add("from the start", faults)
    assert not row.lost, "\n".join(row.lost)


@pytest.mark.parametrize("name", QUICK[:1])
def test_a_full_disk_under_a_quick_command(server, base, tally, name):
    full_disk(server, base, tally, name)


@pytest.mark.parametrize("name", QUICK[:1])
def test_a_read_only_folder_under_a_quick_command(server, base, tally, name):
    read_only(server, base, tally, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKS)
def test_a_full_disk(server, base, tally, name):
    full_disk(server, base, tally, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKS)
def test_a_read_only_folder(server, base, tally, name):
    read_only(server, base, tally, name)
