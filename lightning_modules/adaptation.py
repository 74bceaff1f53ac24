"""How a merge is adapted to unlabelled data."""

from dataclasses import dataclass, fields
from typing import Literal, get_args

from lightning_modules.checks import check_folder_name, check_number
from mergers import SheetbendError
from mergers.adaptive import AdaRank

Split = Literal["train", "val", "test"]
Stop = Literal["steps", "plateau"]

_SHORT = {"task_arithmetic": "ta", "cart": "cart", "tsv": "tsv"}
_METHOD = {"both": "adarank", "masks": "adarank-masks", "coefficients": "adamerging"}


@dataclass(frozen=True)
class Adaptation(AdaRank):
    """How a merge is adapted to unlabelled data (see `AdaRank` for what is learned).

    Attributes:
        name: Of the result in tables and folders; none: made of method, start and space, such as adarank-cart; with
            diversity, ``+d`` follows.
        steps: Optimiser steps; each sees one batch of every task. Adam moves a mask logit by about the learning rate a
            step, and it begins 0.1 away from flipping: before step 0.1 / learning_rate all masks stay as they are.
        batch_size: Examples of each task in a step.
        learning_rate: Adam's.
        betas: Adam's decay rates of the first and the second moment.
        adapt_on: The split whose examples, without their labels, are adapted to. ``test`` is the paper's setting; it
            is transductive, since the result is tested on these very examples, and the results say so.
        fraction: Share of the split that is used, chosen by the seed.
        look_every: Steps between two looks at the validation accuracy, which is drawn but never chooses anything; none:
            a tenth of all. Entropy is averaged over as many steps, and a checkpoint is written. One look is before the
            first step.
        diversity: Weight of the entropy of the mean answer over a task's batch, which is subtracted from the loss, so
            that answers do not collapse onto few classes (Liang et al., SHOT, ICML 2020, arXiv 2002.08546). 0 is
            AdaRank's own loss. Above 0 assumes classes that are about equally frequent, several of them in a batch.
        stop: ``steps``: after all steps. ``plateau``: earlier, when twice in a row the mean entropy of such a window is
            not 1 % below the lowest before. The state reported is the one at the end.
    """

    name: str | None = None
    steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    adapt_on: Split = "test"
    fraction: float = 1.0
    look_every: int | None = None
    diversity: float = 0.0
    stop: Stop = "steps"

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("steps", "batch_size", "look_every"):
            if getattr(self, field) is not None:
                check_number(f"adaptation.{field}", getattr(self, field), least=1, below=2**31)
        check_number("adaptation.learning_rate", self.learning_rate, above=0, below=3.3e37)
        for beta in self.betas:
            check_number("adaptation.betas", beta, least=0, below=1)
        check_number("adaptation.diversity", self.diversity, least=0, below=1e6)
        for field, choices in (("adapt_on", Split), ("stop", Stop)):
            if getattr(self, field) not in get_args(choices):
                known = ", ".join(get_args(choices))
                raise SheetbendError(f"adaptation.{field} is {getattr(self, field)!r}; known: {known}")
        check_number("adaptation.fraction", self.fraction, above=0)
        if self.fraction > 1:
            raise SheetbendError(f"adaptation.fraction is {self.fraction:g}; give a share in (0, 1]")
        if self.name is not None:
            check_folder_name("adaptation.name", self.name)

    def __str__(self) -> str:
        """Say in one line what is learned, on what."""
        part = "" if self.fraction == 1 else f"{self.fraction:.3g} of "
        diverse = f" with diversity {self.diversity:g}" if self.diversity else ""
        return (
            f"{super().__str__()}{diverse} in {self.steps} steps at learning rate {self.learning_rate:g} on {part}the "
            f"unlabelled {self.adapt_on} data"
        )

    @property
    def label(self) -> str:
        """The name of the result.

        >>> Adaptation("cart").label, Adaptation(learn="coefficients", space="knots", diversity=1.0).label
        ('adarank-cart', 'adamerging-ta-knots+d')
        """
        knots = "-knots" if self.space == "knots" else ""
        diverse = "+d" if self.diversity else ""
        return self.name or f"{_METHOD[self.learn]}-{_SHORT[self.start]}{knots}{diverse}"

    @property
    def window(self) -> int:
        """Steps between two looks."""
        return self.look_every or max(1, self.steps // 10)

    @property
    def caveats(self) -> tuple[str, ...]:
        """What a reader of the results should know."""
        part = "the" if self.fraction == 1 else f"{self.fraction:.3g} of the"
        if self.adapt_on == "val":
            seen = f"its validation accuracy is measured on {'' if self.fraction == 1 else 'these and other '}examples"
            return (
                f"{self.label} was adapted to {part} validation examples, without their labels; {seen} it has seen.",
            )
        if self.adapt_on != "test":
            return ()
        return (
            f"{self.label} was adapted to {part} test examples themselves, without their labels (transductive, as in "
            "the paper); other merges have not seen them.",
        )

    @property
    def beginning(self) -> "Beginning":
        """What it is before the first step."""
        return Beginning(**{field.name: getattr(self, field.name) for field in fields(AdaRank)})


class Beginning(AdaRank):
    """A merge before anything is learned.

    >>> str(Adaptation("cart", diversity=1.0).beginning)
    'cart, coefficient 2.3, 16% of the directions: before anything is learned'
    """

    def __str__(self) -> str:
        """Say in one line what it is."""
        space = " in KnOTS space" if self.space == "knots" else ""
        share = f"{self.first_ratio:.0%} of the directions"
        return f"{self.start}{space}, coefficient {self.first_coefficient:g}, {share}: before anything is learned"
