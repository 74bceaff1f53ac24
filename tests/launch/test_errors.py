from argparse import Namespace

import pytest

from launch.errors import guessed, one_line, option_names, place_in

UNION = """Parser key "data": Does not validate against any of the Union subtypes
Subtypes: [<class 'NoneType'>, <class 'Base'>]
Errors:
  - Expected a <class 'NoneType'>
  - {reason}
Given value type: <class 'dict'>
Given value: {{'class_path': 'x'}}"""


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "Option 'learning_rat' is not accepted",
            "unknown option 'learning_rat' (did you mean 'learning_rate'?); --print_config shows all",
        ),
        (
            "Subcommand 'fit' does not accept option 'trainer.max_epoch'",
            "unknown option 'trainer.max_epoch' (did you mean 'max_epochs'?); --print_config shows all",
        ),
        ("unrecognized arguments: --zzz=3", "unknown option 'zzz'; --print_config shows all"),
        (UNION.format(reason="Ties density is 2.0; give less"), "data: Ties density is 2.0; give less"),
        (
            UNION.format(reason="Problem with given class_path 'a.B':\n    module 'a' has no attribute 'B'"),
            "data: Problem with given class_path 'a.B': module 'a' has no attribute 'B'",
        ),
        (
            UNION.format(reason="Expected a <class 'int'>"),
            "data: expected null or int, not \"{'class_path': 'x'}\"",
        ),
        (UNION.format(reason="Expected a dot import path string: x"), "data: expected null or a mapping, not"),
        (
            UNION.format(
                reason="Problem with given class_path 'a.B':\n    Parser key \"size\":\n      Expected a tuple "
                "with 2 elements. Got value: [1]"
            ),
            "data.size: expected a tuple with 2 elements, not [1]",
        ),
        (
            UNION.format(reason="Expected a typing.Literal['16', 'x']"),
            "data: expected null or 16, x, not \"{'class_path': 'x'}\"",
        ),
        (
            "the following arguments are required: analyse.data, analyse.model",
            "data, model missing or null; give them, or a configuration that has them: --config FILE",
        ),
        (
            "Parser key \"config\": File does not exist: '/a/nope.yaml'",
            "--config /a/nope.yaml does not exist; give a configuration, such as configs/quickstart.yaml",
        ),
        ("something\n   else", "something else"),
    ],
)
def test_a_message_becomes_one_line_with_a_way_out(message, expected):
    assert one_line(message, ["learning_rate", "max_epochs", "tasks"]).startswith(expected)


def test_option_names_reach_derived_classes():
    class Base:
        def __init__(self, size: int):
            pass

    class Derived(Base):
        def __init__(self, depth: int, **kwargs):
            pass

    assert option_names([Base]) == {"size", "depth"}
    assert Derived


def test_a_place_stands_before_what_is_wrong_there():
    words = "data.tables.mood: unknown option 'tekst' (did you mean 'text'?); --print_config shows all"
    unknown, known = "Option 'tekst' is not accepted", ["text", "test"]
    assert one_line(unknown, known, "data.tables.mood", lacking=["text"]) == words
    assert one_line(unknown, known, "data.tables.mood") == words.replace("text", "test")
    message = "Parser key \"val\": Expected a <class 'float'>. Got value: many"
    assert one_line(message, place="data.tables.mood") == "data.tables.mood.val: expected float, not 'many'"


def test_guesses_are_options_that_fit_the_place():
    known = ["trim", "lora.alpha", "trainer.max_epochs"]
    assert guessed("tekst", known) == guessed("coefs", known) == ""
    assert guessed("lora.alhpa", known) == " (did you mean 'alpha'?)"
    assert guessed("max_epoch", known) == " (did you mean 'trainer.max_epochs'?)"


def test_places_are_those_of_equal_parts():
    whole = Namespace(tables={"a": {"val": 0.1}, "b": Namespace(val="many")}, seed=None)
    assert place_in(whole, {"val": "many"}) == "tables.b"
    assert place_in(Namespace(mergers={"x": {"init_args": {"own": [{"y": 1}]}}}), {"y": 1}) == "mergers.x.own.0"
    assert place_in(whole, {"val": 1}) is None
