"""`sheetbend report` as it is typed."""

import json
import re
import struct
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from launch.cli import main
from launch.reporting import write_report
from tests.launch.merging import tree
from tests.launch.reporting.fabricated import LEVELS, around, make_config, make_results, write, write_seeds

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 8 + struct.pack(">II", 30, 20)
# Elements that have no end.
VOID = {"meta", "link", "img", "source", "br", "hr"}


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(["report", *map(str, words)])
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.err.startswith("sheetbend: error: ") and captured.err.count("\n") == 1 and not captured.out
    return captured.err


class Page(HTMLParser):
    """The elements of a page, each closed in turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def seeds(tmp_path):
    write_seeds(tmp_path / "runs", around(0.1, 0.12, 0.08), steps=3)
    return tmp_path / "runs"


def test_one_report_over_three_seeds(seeds, capsys):
    before = tree(seeds)
    main(["report", str(seeds)])
    printed = capsys.readouterr().out
    output = seeds / "report"
    assert f"{output / 'report.md'}: 3 pictures" in printed and "report.html: one file" in printed
    names = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert names == {"report.md", "report.html", "plots/bars.png", "plots/normalised.png", "plots/curves.png"}
    assert {path: content for path, content in tree(seeds).items() if output not in (path, *path.parents)} == before
    text = (output / "report.md").read_text()
    assert text.startswith("# runs: test results\n\n## In brief\n\n- Best merge: **knots-ties**")
    assert "| knots-ties | **70.0 ± 2.0** | **70.0 ± 2.0** | **70.0 ± 2.0** | **87.5 ± 2.5** |" in text
    assert "| runs | seed-0, seed-1, seed-2 | 0, 1, 2 | 2 | 400 |" in text
    for name in re.findall(r"\]\((plots/[^)]*)\)", text):
        assert (output / name).read_bytes().startswith(PNG[:8])
    assert "| digits | accuracy | `aaaaaaaaaaaa` | `bbbbbbbbbbbb` | `ffffffffffff` | 200 | ± 2.8 |" in text
    assert "torch 2.13.0 | not recorded | not recorded | test 9.5 s |" in text and "published" not in text
    main(["report", str(seeds), "--quiet", "--title", "Again & again"])  # over the report that is there
    assert capsys.readouterr().out == "" and (output / "report.md").read_text().startswith("# Again \\& again\n")


def test_the_page_is_whole_and_needs_nothing_else(seeds):
    write_report([seeds], seeds / "out")
    text = (seeds / "out" / "report.html").read_text()
    page = Page(text)
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">') and "prefers-color-scheme: dark" in text
    assert not page.all("script") and not re.search(r"https?:|url\(|@import", text)
    addresses = [a[key] for _, a in page.elements for key in ("src", "srcset", "href") if key in a]
    assert addresses and all(one.startswith(("data:", "#")) for one in addresses)
    anchors = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(anchors) == len(set(anchors))
    assert {one[1:] for one in addresses if one.startswith("#")} <= set(anchors)
    assert len(page.all("table")) == len(page.all("caption"))
    assert {attributes.get("scope") for attributes in page.all("th")} == {"col", "row"}
    assert all(attributes["alt"] and int(attributes["width"]) > 100 for attributes in page.all("img"))
    assert len(page.all("h1")) == 1 and page.all("nav")
    headings = [int(name[1]) for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert all(after - before <= 1 for before, after in pairwise(headings))


def test_what_comes_from_files_is_shown_as_it_stands(tmp_path):
    evil = "<script>alert(1)</script>"
    described = {"ties": f'"><img src=x onerror=1> {evil} | [a](http://b) &lt; `c`', evil: "$x$ ~~y~~ <!-- "}
    levels = LEVELS | {evil: 0.65, "_a_*b*|c": 0.5}
    results = make_results(levels, tasks=("<b>one", "two\n# three"), described=described, caveats=[f"see {evil}"])
    folder = write(tmp_path / "<script>run & more", results, make_config(), steps=2)
    write_report([folder], tmp_path / "out", f"</title>{evil}")
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert not page.all("script") and not page.all("b") and page.all("a")
    assert len(page.all("img")) == 3 and all("onerror" not in attributes for _, attributes in page.elements)
    shown = "".join(page.texts)
    for text in (evil, "_a_*b*|c", "two # three", "[a](http://b) &lt; `c`", f"see {evil}"):
        assert text in shown, text
    text = (tmp_path / "out" / "report.md").read_text()
    assert "<" not in re.sub(r"\\<|`[^`]*`", "", text).replace("&lt;", "")
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if "task-" in line or "\\_a" in line}
    assert widths <= {6, 10, 3}  # no cell breaks its table


def test_groups_stand_side_by_side(tmp_path):
    write_seeds(tmp_path / "rank-16", around(0.1, 0.1, 0.1))
    write_seeds(tmp_path / "rank-4", around(0.05, 0.02), rank=4)
    files = write_report([tmp_path / "rank-16", tmp_path / "rank-4"], tmp_path / "out")
    text = files[0].read_text()
    assert "| model.lora.r | 16 | 4 |" in text
    assert "| variant | rank-16 | rank-4 |" in text and "## rank-16" in text and "## rank-4" in text
    assert "| knots-ties | **87.5 ± 0.0** | **79.4 ± 2.7** |" in text
    assert "2 seeds in rank-4: differences under two points are noise" in text
    assert len(files) == len(set(files)) == 2 + 4 and all(path.is_file() for path in files)


def test_other_examples_are_said_to_be_others(tmp_path):
    for seed, prints in enumerate("ffe"):
        write(tmp_path / f"seed-{seed}", make_results(seed=seed, prints=prints), make_config(seed))
    text = write_report([tmp_path], tmp_path / "out")[0].read_text()
    assert "Not all groups were tested on the same examples of digits, scenes" in text
    assert "| digits: examples (fingerprint) | 200 (ffffffffffff) | 200 (eeeeeeeeeeee) |" in text


def test_pictures_of_parts_are_taken_in(tmp_path):
    write(tmp_path / "run", make_results(), make_config())
    learned = make_results(LEVELS | {"adarank-ta-start": 0.6, "adarank-ta": 0.75}, adapts=True)
    part = write(tmp_path / "run" / "adaptations" / "adarank-ta", learned, make_config(), steps=3)
    (part / "plots").mkdir()
    (part / "plots" / "kept_rank.png").write_bytes(PNG)
    (part / "plots" / "coefficients.png").write_bytes(b"no picture")
    files = write_report([tmp_path / "run"], tmp_path / "out")
    assert {path.name for path in files[2:]} == {
        "bars.png",
        "normalised.png",
        "curves_adarank-ta.png",
        "adarank-ta_kept_rank.png",
    }
    assert (tmp_path / "out" / "plots" / "adarank-ta_kept_rank.png").read_bytes() == PNG
    text = files[0].read_text()
    assert "over the adaptation adarank-ta" in text and "Its gain over its own start: +18.8 points" in text
    assert "| adarank-ta | +15.0 | +15.0 | +15.0 | +18.8 |" in text and "| adarank-ta-start |" not in text
    assert "(learned on unlabelled data; started as what adarank-ta-start is)" in text


def test_what_has_not_been_tested_is_named(seeds):
    (seeds / "seed-3").mkdir()
    (seeds / "seed-3" / "config.yaml").write_text("{}")
    text = write_report([seeds], seeds / "out")[0].read_text()
    assert "seed-3 has no results.json yet; it is left out." in text.replace("\\", "")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "holds no results.json"),
        ('{"format": 1, "split": "te', "results.json is cut short or damaged"),
        ('{"format": 9}', "has format 9, of another version, not 1"),
        ("[]", "holds no results"),
        ('{"format": 1, "split": "test", "meta": {}, "descriptions": {}, "scores": []}', "holds no scores"),
        ('{"format": 1, "split": "test", "meta": 3, "descriptions": {}, "scores": []}', "holds no results"),
        ("\udcff", "is no text in UTF-8"),
    ],
)
def test_bad_results_are_refused_in_one_line(tmp_path, capsys, content, expected):
    folder = tmp_path / "run"
    folder.mkdir()
    if content is not None:
        (folder / "results.json").write_bytes(content.encode(errors="surrogateescape"))
    before = tree(tmp_path)
    line = refused(capsys, folder, "--output", tmp_path / "out")
    assert expected in line and str(folder) in line
    assert tree(tmp_path) == before


def test_a_score_that_is_no_number_is_refused(tmp_path, capsys):
    write(tmp_path / "run", make_results(), make_config())
    path = tmp_path / "run" / "results.json"
    content = json.loads(path.read_text())
    content["scores"][0]["value"] = "high"
    path.write_text(json.dumps(content))
    assert "results.json holds no results (not a score" in refused(capsys, tmp_path / "run")


@pytest.mark.parametrize("name", ["config.yaml", "history.csv"])
def test_other_files_that_are_cut_short_are_refused(tmp_path, capsys, name):
    folder = write(tmp_path / "run", make_results(), make_config(), steps=2)
    (folder / name).write_text({"config.yaml": "model: {class_path", "history.csv": "step,epoch\n1,"}[name])
    assert name in refused(capsys, folder)


def test_bad_paths_are_refused_in_one_line(seeds, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for name in ("thesis/report.md", "folder/report.html/x"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("mine")
    before = tree(tmp_path)
    for name in ("thesis/report.md", "folder/report.html"):
        line = refused(capsys, seeds, "--output", (tmp_path / name).parent)
        assert f"{name} is no report of this command; give another folder" in line
    assert "nope does not exist" in refused(capsys, tmp_path / "nope")
    assert "file is no folder" in refused(capsys, tmp_path / "file")
    assert "seed-0 is given twice" in refused(capsys, seeds / "seed-0", seeds / "seed-0" / ".")
    assert "seed-0 is given twice, also as" in refused(capsys, seeds / "seed-0", seeds / ".." / "runs")
    assert "is a file; give a folder" in refused(capsys, seeds, "--output", tmp_path / "file")
    assert "is a file; give a folder" in refused(capsys, seeds, "--output", tmp_path / "file" / "below")
    assert "is the folder of a run" in refused(capsys, seeds, "--output", seeds / "seed-1")
    assert "--title is empty" in refused(capsys, seeds, "--title", " ")
    assert "--output is empty" in refused(capsys, seeds, "--output", "")
    assert "RUN is empty" in refused(capsys, "")
    assert "RUN missing" in refused(capsys)
    assert "did you mean --output" in refused(capsys, seeds, "--outptu", "x")
    assert tree(tmp_path) == before


def test_a_disk_that_is_full_leaves_the_report_that_was_there(seeds, monkeypatch, capsys):
    main(["report", str(seeds), "--quiet"])
    before = tree(seeds)
    whole = type(seeds).write_bytes

    def full(path, content):
        if path.suffix == ".html":
            raise OSError(28, "No space left on device", str(path))
        return whole(path, content)

    monkeypatch.setattr(type(seeds), "write_bytes", full)
    assert "No space left on device" in refused(capsys, seeds, "--title", "Other")
    assert tree(seeds) == before
