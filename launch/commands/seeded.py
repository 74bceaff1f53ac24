"""``sheetbend merge --seeds``: the same merge once a seed."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch import cli
from launch.commands.adapters import in_words_of_options
from launch.commands.words import Layer

if TYPE_CHECKING:
    from mergers import Merger

WORD = "{seed}"
# Options in whose values the seed stands for `WORD`.
PLACES = ("adapters", "output", "into", "base")


def check_options(options: Namespace, layers: Sequence[Layer]) -> None:
    """Refuse options that make no series of merges.

    Args:
        options: of the command.
        layers: what the user gave; a transform's own seed stands there.
    """
    if "output" in options and WORD not in options.output:
        cli.fail(f"--output {options.output} would be written {len(options.seeds)} times; put {WORD} into its name")
    own = [step.fields["seed"] for layer in layers for step in layer.transforms or () if "seed" in step.fields]
    if any(seed != "0" for seed in own):  # the default
        cli.fail(f"--transforms.seed {own[-1]} stands beside --seeds; leave one of both out")


def with_seed(merger: "Merger", seed: int | None) -> "Merger":
    """Return the merge with this seed for the transforms that draw; the same merge of none.

    >>> from mergers import Dare, Merger
    >>> with_seed(Merger(transforms=[Dare(0.5)]), 3).transforms[0].seed
    3
    """
    if seed is None:
        return merger
    drawn = [replace(one, seed=seed) if _draws(one) else one for one in merger.transforms]
    return replace(merger, transforms=drawn)


def _draws(transform: Any) -> bool:
    return any(field.name == "seed" for field in fields(transform))


def of_seed(options: Namespace, seed: int) -> Namespace:
    """Return the options of one merge.

    >>> of_seed(Namespace(adapters=["a/{seed}/x"], output="m-{seed}", rank=4), 1)
    Namespace(adapters=['a/1/x'], output='m-1', rank=4)
    """
    given = {name: value for name, value in vars(options).items() if name != "seeds"}
    for name in PLACES:
        if isinstance(given.get(name), str):
            given[name] = given[name].replace(WORD, str(seed))
        elif name in given:
            given[name] = [value.replace(WORD, str(seed)) for value in given[name]]
    return Namespace(**given)


def merge_each(
    options: Namespace, merger: "Merger", check: Callable[[Namespace], Any], run: Callable[[Namespace, Any, Any], None]
) -> None:
    """Merge once a seed.

    Args:
        options: with seeds.
        merger: what all of them do.
        check: refuses the options of one merge, before any is begun; returns what ``run`` takes of them.
        run: merges once.

    Raises:
        SheetbendError: one failed, which is named.
    """
    from launch.series import Entry, check_seeds, in_turn
    from mergers.errors import SheetbendError

    check_seeds(options.seeds, "--seeds")
    if not any(WORD in adapter for adapter in options.adapters) and not any(map(_draws, merger.transforms)):
        cli.fail(f"--seeds would change nothing: no adapter has {WORD} in its name, and no transform draws")
    each = {f"seed {seed}": (seed, of_seed(options, seed)) for seed in options.seeds}
    checked = {label: check(own) for label, (_, own) in each.items()}

    def merge(entry: Entry) -> bool:
        seed, own = each[entry.label]
        try:
            run(own, with_seed(merger, seed), checked[entry.label])
        except SheetbendError as error:
            raise SheetbendError(in_words_of_options(str(error))) from None
        return True

    entries = [Entry(label, Path(getattr(own, "output", "-"))) for label, (_, own) in each.items()]
    quiet = getattr(options, "quiet", False)
    in_turn(entries, merge, say=(lambda line: None) if quiet else None)
