"""A process that forks commands, a hub on this machine, and a table of what the faults cost."""

import shutil

import pytest

from tests.hub_stand_in import serving
from tests.trust.kills import Tally
from tests.trust.server import Server
from tests.trust.works import hub_with_little

TITLES = ("command", "fault", "injected", "survived", "lost")
_rows: list[tuple] = []


@pytest.fixture(scope="session")
def base(tiny_clip, tmp_path_factory):
    """The folder below which commands run, with the model that they read."""
    folder = tmp_path_factory.mktemp("trust")
    shutil.copytree(tiny_clip, folder / "clip")
    return folder


@pytest.fixture(scope="session")
def server(base):
    """What runs commands; a hub answers them."""
    hub = hub_with_little(base / "served")
    hub.pause = 0.001
    with serving(hub) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUST_HUB", address)
        one = Server()
        yield one
        one.close()


@pytest.fixture
def tally(request, record_property):
    """Makes the row of a table, which is shown when all tests have ended."""
    made: list[Tally] = []

    def begin(work: str, fault: str) -> Tally:
        made.append(Tally(work, fault))
        return made[-1]

    yield begin
    for one in made:
        _rows.append(one.row)
        record_property("faults", one.row)


def pytest_terminal_summary(terminalreporter):
    """Show the table, whichever process ran the tests."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    rows = [value for report in reports for name, value in getattr(report, "user_properties", ()) if name == "faults"]
    rows = list(dict.fromkeys(map(tuple, rows))) or _rows
    if rows:
        terminalreporter.section("faults")
        for line in (TITLES, tuple("-" * len(title) for title in TITLES), *rows):
            terminalreporter.write_line("| " + " | ".join(map(str, line)) + " |")
