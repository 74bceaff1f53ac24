"""What `adaptation_speed.py` measures, and the least that either way must compute and move. Imports no torch."""

from dataclasses import dataclass, field
from typing import Any

Shape = tuple[int, int]

# Settings of transformers' CLIPVisionConfig.
GEOMETRIES: dict[str, dict[str, int]] = {
    "vit-b-32": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    | {"image_size": 224, "patch_size": 32, "projection_dim": 512},
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    | {"image_size": 16, "patch_size": 8, "projection_dim": 16},
}
_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Target:
    """What is aimed at, ours against the published way.

    Attributes:
        faster: Times, of the merging part.
        memory: Times less.
        memory_of: ``step``, or ``merging`` alone.
    """

    faster: float
    memory: float
    memory_of: str


@dataclass(frozen=True)
class Case:
    """One start of one merge.

    Attributes:
        name: Of the case.
        start: See `mergers.adaptive.AdaRank`.
        space: See there.
        rank: Of the tasks' LoRA adapters on the attention; none: full-rank updates of attention and MLP.
        target: What is aimed at.
    """

    name: str
    start: str
    target: Target
    space: str = "full"
    rank: int | None = None

    @property
    def ratio(self) -> float:
        """The share of the directions that is on."""
        return 0.16 if self.start == "cart" else 1.0


_LORA = Target(faster=10, memory=10, memory_of="merging")
CASES = {
    case.name: case
    for case in (
        Case("full-ta", "task_arithmetic", Target(1, 2, "step")),
        Case("full-cart", "cart", Target(1.5, 2, "step")),
        Case("lora-ta", "task_arithmetic", _LORA, rank=16),
        Case("lora-cart", "cart", _LORA, rank=16),
        Case("lora-knots-ta", "task_arithmetic", _LORA, space="knots", rank=16),
    )
}


@dataclass(frozen=True)
class Setting:
    """How large everything is.

    Attributes:
        geometry: Name of the model's shape.
        tasks: T.
        batch: Pictures of each task in a step.
        layers: Of the model; none: as many as the geometry has.
    """

    geometry: str = "vit-b-32"
    tasks: int = 8
    batch: int = 16
    layers: int | None = None
    config: dict[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        config = dict(GEOMETRIES[self.geometry])
        if self.layers:
            config["num_hidden_layers"] = self.layers
        object.__setattr__(self, "config", config)

    def shapes(self, case: Case) -> dict[str, Shape]:
        """Return the weights of the model that have masks, by parameter name, with (out, in)."""
        width, inner = self.config["hidden_size"], self.config["intermediate_size"]
        one = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
        if case.rank is None:
            one |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
        layers = range(self.config["num_hidden_layers"])
        return {f"vision_model.encoder.layers.{i}.{name}.weight": shape for name, shape in one.items() for i in layers}


@dataclass(frozen=True)
class Work:
    """The least that a merge and its backward pass must do.

    Attributes:
        flops: Of the matrix products, a multiplication and an addition each; what is done entry by entry is left out.
        moved: Bytes, if each operand is read once, and each result written once, in either pass.
    """

    flops: int = 0
    moved: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.moved + other.moved)


def our_work(case: Case, shape: Shape, tasks: int) -> Work:
    """Return what one weight takes as one masked sum.

    K directions (p, q), of which the masks leave some. Forward: B_on^T A_on, 2 p q for each that is on; these are read,
    and the origin; the weight is written. Backward: b_k^T G a_k, 2 p q for each of all K; these are read, and G.
    Full-rank: K = T min(out, in), (p, q) = (out, in). LoRA around zero: K = T r. LoRA around the mean, or in KnOTS
    space: K = T R with R = min(T r, out, in) and p = q = R, between a frame of (out, R) and one of (R, in), which takes
    2 out R (R + in) both ways, and is read both ways.

    >>> our_work(Case("c", "task_arithmetic", Target(1, 1, "step")), (4, 6), 2)
    Work(flops=768, moved=928)
    """
    rows, columns = shape
    framed = case.rank is not None and (case.start == "cart" or case.space == "knots")
    each = min(shape) if case.rank is None else min(case.rank, *shape)
    p, q = shape
    if framed:
        p = q = each = min(tasks * case.rank, *shape)
    all_of_them, on = tasks * each, tasks * max(1, int(case.ratio * each))
    flops = 2 * p * q * (on + all_of_them) + framed * 2 * 2 * rows * p * (p + columns)
    entries = (on + all_of_them) * (p + q) + 3 * rows * columns + framed * 2 * p * (rows + columns)
    return Work(flops, entries * _FLOAT)


def published_work(case: Case, shape: Shape, tasks: int) -> Work:
    """Return what one weight takes if each task's (U * s~) V^T is formed, whatever the masks and the rank.

    Forward: 2 out in d for each task, with d = min(out, in) directions; U and V are read, the origin too, the weight is
    written, and each task's product, which the gradient of its coefficient needs. Backward: G V^T, the same number;
    U, V, the products and G are read.

    >>> published_work(Case("c", "cart", Target(1, 1, "step")), (4, 6), 2)
    Work(flops=768, moved=1312)
    """
    rows, columns = shape
    each = min(shape)
    flops = 2 * tasks * 2 * rows * columns * each
    entries = tasks * (2 * each * (rows + columns) + 2 * rows * columns) + 3 * rows * columns
    return Work(flops, entries * _FLOAT)


def whole_work(way: str, case: Case, setting: Setting) -> Work:
    """Return what all weights take."""
    work = our_work if way == "ours" else published_work
    return sum((work(case, shape, setting.tasks) for shape in setting.shapes(case).values()), Work())


def model_flops(case: Case, setting: Setting) -> int:
    """Return the FLOPs of the model's linear layers over the batches of all tasks, attention and embedding left out.

    Forward and towards the activations 2 each for a token and an entry of a weight; as many once more towards each
    weight that is merged. Both ways share them.
    """
    own = setting.config
    tokens = setting.tasks * setting.batch * ((own["image_size"] // own["patch_size"]) ** 2 + 1)
    width, inner, layers = own["hidden_size"], own["intermediate_size"], own["num_hidden_layers"]
    entries = layers * (4 * width**2 + 2 * width * inner)
    merged = sum(rows * columns for rows, columns in setting.shapes(case).values())
    return 2 * tokens * (2 * entries + merged)
