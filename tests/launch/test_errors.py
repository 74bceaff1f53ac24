import pytest

from launch.errors import one_line, option_names

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
        ("something\n   else", "something else"),
    ],
)
def test_a_message_becomes_one_line_with_a_way_out(message, expected):
    assert one_line(message, ["learning_rate", "max_epochs", "tasks"]) == expected


def test_option_names_reach_derived_classes():
    class Base:
        def __init__(self, size: int):
            pass

    class Derived(Base):
        def __init__(self, depth: int, **kwargs):
            pass

    assert option_names([Base]) == {"size", "depth"}
    assert Derived
