"""``--seeds``: the same command once a seed, and the mean of what came out."""

import csv
import json
import re
import statistics

import pytest
import yaml

from callbacks.results import Results
from launch import seeds, series
from launch.cli import main
from lightning_modules import LoRATasks
from mergers import SheetbendError
from tests.launch.merging import tree
from tests.launch.test_cli import CONFIG, refused


def write_config(tiny_clip, root, **more):
    config = yaml.safe_load(CONFIG.format(model=tiny_clip, root=root / "runs")) | more
    config["trainer"]["callbacks"].append({"class_path": "callbacks.ResultsCallback", "init_args": {"plots": False}})
    config["trainer"] |= {"max_epochs": 1, "enable_progress_bar": False}
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    return ["--config", str(root / "config.yaml")]


@pytest.fixture(scope="module")
def trained(tiny_clip, tmp_path_factory):
    """The root of a series of two seeds that ``fit`` has trained and tested, and its options."""
    root = tmp_path_factory.mktemp("series")
    words = write_config(tiny_clip, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        main(["fit", *words, "--seeds", "0", "1"])
    return root / "runs", words


@pytest.fixture
def started(monkeypatch):
    """The seeds of the models that are built."""
    begun, build = [], LoRATasks.build

    def noted(module, *args, **kwargs):
        begun.append(module.seed)
        return build(module, *args, **kwargs)

    monkeypatch.setattr(LoRATasks, "build", noted)
    return begun


def results(folder):
    return Results.from_json((folder / "results.json").read_text())


def test_each_seed_is_a_plain_run_and_the_table_is_their_mean(trained, tiny_clip, tmp_path, capsys, monkeypatch):
    root, words = trained
    plain = tmp_path / "plain"
    main(["fit", *words, "--seed_everything", "1", "--trainer.default_root_dir", str(plain)])
    ours = root / "seed-1"
    assert results(ours).scores == results(plain).scores != results(root / "seed-0").scores
    names = {path.relative_to(plain).as_posix() for path in plain.rglob("*") if path.is_file()}
    for name in sorted(name for name in names if name.endswith(("safetensors", "csv"))):
        assert (ours / name).read_bytes() == (plain / name).read_bytes(), name
    same = (plain / "config.yaml").read_text().replace(str(plain), str(ours))
    assert (ours / "config.yaml").read_text() == same
    with (root / "seeds.csv").open() as file:
        rows = {(row["variant"], row["task"], row["metric"]): row for row in csv.DictReader(file)}
    each = [results(root / f"seed-{seed}") for seed in (0, 1)]
    numbers = {
        ("mean", "hue", "accuracy"): [one.value("mean", "hue") for one in each],
        ("knots-ties", "mean", "norm. mean"): [one.mean_normalised("knots-ties") for one in each],
        ("finetuned", "all", "joint hits@1"): [one.joint("finetuned", 1) for one in each],
    }
    for key, values in numbers.items():
        assert [float(rows[key]["seed 0"]), float(rows[key]["seed 1"])] == values
        assert float(rows[key]["mean"]) == pytest.approx(statistics.mean(values))
        assert float(rows[key]["deviation"]) == pytest.approx(statistics.stdev(values))


def test_a_finished_series_is_shown_and_nothing_is_run_again(trained, started, capsys, monkeypatch):
    root, words = trained
    monkeypatch.setenv("COLUMNS", "200")
    before = tree(root)
    main(["fit", *words, "--seeds", "0", "1"])
    printed = capsys.readouterr().out
    for number, seed in enumerate((0, 1), 1):
        folder = root / f"seed-{seed}"
        assert f"seed {seed} ({number} of 2): {folder} is finished and unchanged; --overwrite true repeats" in printed
    assert not started and tree(root) == before
    each = [results(root / f"seed-{seed}").mean_value("knots-ties") for seed in (0, 1)]
    row = next(line for line in printed.splitlines() if line.startswith("knots-ties"))
    assert f"{100 * statistics.mean(each):.1f} ± {100 * statistics.stdev(each):.1f}" in row
    assert "mean ± sample standard deviation over 2 seeds (0, 1)" in printed


@pytest.mark.slow
def test_what_changed_is_run_again_and_a_further_seed_alone(trained, started, capsys, tmp_path):
    root, words = trained
    test = ["test", *words, "--model.adapters", str(root / "seed-{seed}" / "adapters"), "--trainer.default_root_dir"]
    main([*test, str(tmp_path / "x"), "--seeds", "0"])
    assert started == [0]
    saved = yaml.safe_load((tmp_path / "x" / "seed-0" / "test_config.yaml").read_text())
    assert saved["seeds"] is None and saved["seed_everything"] == 0
    assert saved["model"]["init_args"]["adapters"] == str(root / "seed-0" / "adapters")
    assert results(tmp_path / "x" / "seed-0").scores == results(root / "seed-0").scores
    main([*test, str(tmp_path / "x"), "--seeds", "0", "1"])
    assert started == [0, 1]
    main([*test, str(tmp_path / "x"), "--seeds", "0", "1", "--trainer.limit_test_batches", "1"])
    assert started == [0, 1, 0, 1]
    main([*test, str(tmp_path / "x"), "--seeds", "1", "--overwrite", "true"])
    assert started == [0, 1, 0, 1, 1]
    (tmp_path / "x" / "seed-1" / "results.json").unlink()
    main([*test, str(tmp_path / "x"), "--seeds", "1"])
    assert started == [0, 1, 0, 1, 1, 1]
    assert capsys.readouterr().out.count("is finished") == 1  # of the seed that was added to
    weights = root / "seed-1" / "adapters" / "hue" / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content)  # of another time
    main([*test, str(tmp_path / "x"), "--seeds", "1"])
    assert started[6:] == [1]


def test_a_seed_that_fails_is_named_and_those_before_it_are_kept(tiny_clip, tmp_path, started, capsys):
    words = [*write_config(tiny_clip, tmp_path, seeds=[3, 4, 5]), "--trainer.limit_test_batches", "1"]
    (tmp_path / "runs" / "seed-4" / "adapters").mkdir(parents=True)
    line = refused(capsys, "fit", *words)
    assert line.startswith("sheetbend: error: seed 4: ") and "holds results, but no config.yaml" in line
    assert started == [3] and not (tmp_path / "runs" / "seed-5").exists()
    (tmp_path / "runs" / "seed-4" / "adapters").rmdir()
    interrupted, build = [4], LoRATasks.build

    def stop(module, *args, **kwargs):
        if module.seed in interrupted:
            raise KeyboardInterrupt
        return build(module, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit:
        patch.setattr(LoRATasks, "build", stop)
        main(["fit", *words])
    printed = capsys.readouterr().out
    assert exit.value.code == 130 and "interrupted in seed 4 (2 of 3); finished and kept: seed 3" in printed
    main(["fit", *words])
    assert started == [3, 4, 5]
    assert len(json.loads((tmp_path / "runs" / series.FILE).read_text())["finished"]) == 3


@pytest.mark.filterwarnings("ignore:hardly a mask can change")  # in two steps
def test_validate_adapt_and_search_take_seeds(trained, capsys, monkeypatch, tmp_path):
    root, words = trained
    monkeypatch.setenv("COLUMNS", "250")
    before = tree(root)
    main(["validate", *words, "--seeds", "0", "1"])
    printed = capsys.readouterr().out
    assert "Validation accuracy in %, 80 examples of 2 tasks: mean" in printed and "is finished" not in printed
    assert before.items() <= tree(root).items()  # and no table of seeds is taken for that of a test
    adapted = [*words, "--seeds", "0", "1", "--adaptation", "{steps: 2, batch_size: 8, name: mine}"]
    for again in (False, True):
        main(["adapt", *adapted])
        printed = capsys.readouterr().out
        assert printed.count("is finished and unchanged") == 2 * again and "mine" in printed
    assert (root / "seed-1" / "adaptations" / "mine" / "results.json").is_file()
    searched = ["--search", "{over: {coefficients: [0.5, 1.0]}}"]
    main(["search", *words, "--seeds", "0", "1", *searched])
    assert (root / "seed-1" / "searches" / "one-at-a-time" / "results.json").is_file()
    folder = root / "searches" / "one-at-a-time"
    said = "; " + ", ".join(f"searches/one-at-a-time/{name}" for name in ("report.html", "report.md", "seeds.csv"))
    assert f"seed-1/searches/one-at-a-time{said}, series.json" in capsys.readouterr().out
    assert "one-at-a-time" in (folder / "report.md").read_text() and (folder / "report.html").is_file()
    assert "mine" in (root / "adaptations" / "mine" / "seeds.csv").read_text()
    reports = {root / name: before[root / name] for name in ("report.md", "report.html", "seeds.csv")}
    assert reports.items() <= tree(root).items()  # of fit, which no other command replaces
    main(["report", str(root), "--output", str(tmp_path / "report"), "--quiet"])
    assert "Not tested" not in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.parametrize(
    ("given", "settings", "words", "expected"),
    [
        ([], {}, [], "seeds is empty; name some, such as --seeds 0 1 2"),
        ([0, 1, 0], {}, [], "seeds has 0 twice; name it once"),
        ([-1], {}, [], "seeds has -1; give numbers from 0"),
        ([2**32], {}, [], "seeds has 4294967296; give numbers from 0 to 4294967295"),
        ([1, 2], {}, ["--seed_everything", "0"], "seed_everything is 0 beside seeds 1 2; leave one of both out"),
        ([1, 2], {}, ["--seed_everything=0"], "seed_everything is 0 beside seeds 1 2"),
        ([1, 2], {"seed_everything": 3}, [], "seed_everything is 3 beside seeds 1 2"),
        ([0, 1], {"seed_everything": False}, [], "seed_everything is False beside seeds 0 1"),
        ([0, 1], {"model": {"init_args": {"seed": 0}}}, [], "model.seed is 0, whatever --seeds says"),
        ([0, 1], {"trainer": {"default_root_dir": "x-{seed}"}}, [], "leave {seed} out"),
    ],
)
def test_seeds_that_make_no_series_are_one_line(given, settings, words, expected):
    plain = {"seed_everything": 0, "trainer": {"default_root_dir": "x"}, "model": {"init_args": {"seed": None}}}
    with pytest.raises(SheetbendError, match=re.escape(expected)) as caught:
        seeds.run("fit", given, plain | settings, words)
    assert "\n" not in str(caught.value)


def test_the_command_line_refuses_what_are_no_seeds_and_says_in_its_help_what_they_do(tiny_clip, tmp_path, capsys):
    words = write_config(tiny_clip, tmp_path)
    assert "seeds has 0 twice" in refused(capsys, "fit", *words, "--seeds", "0", "0")
    assert "seeds" in refused(capsys, "fit", *words, "--seeds", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    with pytest.raises(SystemExit):
        main(["adapt", "--help"])
    assert "--seeds" in capsys.readouterr().out


def test_a_report_of_all_seeds_never_replaces_that_of_a_single_run(tmp_path):
    def placed(name):
        own = tmp_path / "seed-1"
        outcome = series.Outcome(series.Entry("seed 1", own), own / name, None)
        return seeds.report_folder(tmp_path, outcome).relative_to(tmp_path).as_posix()

    assert [placed(""), placed("searches/grid")] == [".", "searches/grid"]
    (tmp_path / "searches" / "grid").mkdir(parents=True)
    (tmp_path / "searches" / "grid" / "candidates.json").touch()
    assert [placed(""), placed("searches/grid")] == [".", "seeds/searches/grid"]
    (tmp_path / "config.yaml").touch()
    assert [placed(""), placed("searches/x")] == ["seeds", "seeds/searches/x"]


@pytest.mark.parametrize(
    "text", ["", "[", "[" * 100_000, "null", '{"format": 1, "finished": []}', '{"format": 1, "finished": {"a": null}}']
)
def test_a_damaged_record_of_a_series_says_of_no_run_that_it_is_finished(tmp_path, text):
    (tmp_path / series.FILE).write_text(text)
    own, configuration = tmp_path / "seed-0", {"trainer": {"default_root_dir": str(tmp_path / "seed-0")}}
    own.mkdir()
    (own / series.RESULTS).write_text("{}")
    finished, entry = series.Finished(tmp_path, "fit"), series.Entry("seed 0", own)
    assert finished.folder(entry, configuration) is None
    finished.add(entry, configuration, own)
    assert finished.folder(entry, configuration) == own
