"""Strategies: what is asked for, in which order, and when they end."""

import pytest

from launch.searching.settings import Range, Search, changed
from launch.searching.strategies import Grid, OneAtATime, Optuna
from mergers import Dare, Merger, SheetbendError, Ties

MERGER = Merger("knots", Ties(density=0.2), [Dare(0.1)], coefficients=0.6)


def run(strategy, score, most=1):
    """Candidates in their order, each told its score."""
    seen = []
    while asked := strategy.ask(most):
        assert len(asked) <= most
        for values in asked:
            seen.append(values)
            strategy.tell(values, score(values))
    return seen


def test_a_grid_is_all_combinations_whatever_is_asked_for_at_once():
    space = {"a": [1, 2], "b": Range(0.1, 0.3, 0.1)}
    every = [{"a": a, "b": b} for a in (1, 2) for b in (0.1, 0.2, 0.3)]
    assert run(Grid(space), lambda values: 0.0, most=4) == run(Grid(space), lambda values: 1.0) == every


def test_one_at_a_time_stops_at_the_first_drop_and_keeps_the_best():
    scores = {(1, 10): 0.5, (2, 10): 0.6, (3, 10): 0.55, (4, 10): 0.9, (2, 20): 0.7, (2, 30): 0.7, (2, 40): 0.6}
    space = {"a": [1, 2, 3, 4], "b": [10, 20, 30, 40, 50]}
    seen = run(OneAtATime(space, {"a": 1, "b": 10}), lambda values: scores[values["a"], values["b"]])
    # 4 is past the drop at 3, 50 past that at 40; an equal score is no drop.
    assert [(v["a"], v["b"]) for v in seen] == [(1, 10), (2, 10), (3, 10), (2, 20), (2, 30), (2, 40)]


def test_one_at_a_time_waits_for_a_score():
    strategy = OneAtATime({"a": [1, 2]}, {"a": 0})
    assert strategy.ask(5) == [{"a": 0}] and strategy.ask(5) == []
    strategy.tell({"a": 0}, 0.1)
    assert strategy.ask(5) == [{"a": 1}]


def test_optuna_goes_on_where_another_left_and_gives_up_what_was_interrupted(tmp_path):
    pytest.importorskip("optuna")
    space = {"a": Range(0.0, 1.0), "b": ["x", "y"], "c": [[1, 2], None]}
    start, score = {"a": 0.5, "b": "x", "c": None}, lambda values: -abs(values["a"] - 0.3) - (values["b"] == "x")

    def study(worker, trials=12):
        return Optuna(space, start, "s", trials, str(tmp_path / "s.journal"), seed=0, worker=worker)

    first = study("one")
    begun = first.ask(1)
    assert begun == [start]
    first.tell(start, score(start))
    first.ask(3)  # never told: the process ends here
    seen = run(study("one"), score, most=4)
    assert len(seen) == 11 and study("two").ask(1) == []
    assert min(abs(values["a"] - 0.3) for values in seen if values["b"] == "y") < 0.2
    assert len(run(study("two", trials=14), score)) == 2


def test_spaces_name_settings_in_full_and_pass_over_what_a_merge_lacks():
    mergers = {"knots-dare-ties": MERGER, "mean": Merger()}
    over = {"coefficients": [0.5, 1.0], "density": [0.1], "Dare.drop_rate": {"low": 0.1, "high": 0.5, "step": 0.2}}
    found = Search(over).spaces(mergers)
    assert found["mean"] == {"coefficients": [0.5, 1.0]}
    assert list(found["knots-dare-ties"]) == ["coefficients", "method.density", "transforms.0.drop_rate"]
    assert Search(over, of={"mean": {}}).spaces(mergers)["mean"] == {}
    best = changed(MERGER, {"method.density": 0.5, "method": "ties", "transforms.0.drop_rate": 0.3, "space": "core"})
    assert str(best) == "Dare(drop_rate=0.3), then Ties(density=0.5), in Core space, coefficient 0.6"


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ({}, "leave nothing to search"),
        ({"over": {"densitty": [1]}}, "there is no setting 'densitty' (did you mean 'density'?)"),
        ({"over": {"density": []}}, "search over density: the list is empty"),
        ({"over": {"density": 0.3}}, "search over density: 0.3 is no list of values; give [0.3], or a range"),
        ({"over": {"density": [0.3, 0.3]}}, "0.3 stands twice"),
        ({"over": {"density": [0.3, 2]}}, "search over method.density of ties: Ties density is 2"),
        ({"over": {"density": ["x"]}}, "search over method.density of ties:"),
        ({"over": {"density": {"low": 0.1}}}, "a range has low, high, and step or log, not {'low': 0.1}"),
        ({"over": {"density": {"low": 0.4, "high": 0.1}}}, "search range from 0.4 to 0.1 is empty"),
        ({"over": {"density": {"low": 0.1, "high": 0.4}}}, "one_at_a_time needs a step in its range"),
        ({"of": {"tise": {"density": [0.1]}}}, "search.of names 'tise'; known merges: ties"),
        ({"over": {"space": ["fulll"]}}, "unknown space 'fulll'"),
    ],
)
def test_what_cannot_be_searched_is_one_line(search, expected):
    with pytest.raises(SheetbendError) as error:
        Search(**search).spaces({"ties": Merger(method=Ties())})
    assert expected in str(error.value) and "\n" not in str(error.value)
