"""The configuration of an edit by instruction: what is asked, how the field follows, and in which stages.

A method is a sequence of stages, `Stage`; the methods that Haque et al. (Instruct-NeRF2NeRF, 2023) compare differ in nothing else:

    in2n          the iterative dataset update: one view edited every 10 steps, in cyclic order
    intervals     all views edited one after the other every 2500 steps (Instruct-GS2GS)
    one-time      all views edited once from pure noise, then the field is fitted to them
    per-view      all views edited once, and no field: what the editor alone does
    sds           no images: the editor's score as a gradient on renders
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from jaxedit.fields.voxel_grid import Shape
from jaxvid.core.errors import UserError
from jaxvid.train.optimizer import OptimizerConfig

Method: TypeAlias = Literal["in2n", "intervals", "one-time", "per-view", "sds"]


@dataclass(frozen=True)
class EditConfig:
    """What is asked of the editor.

    instruction: the sentence; negative: what stands for "no text". editor: a folder of InstructPix2Pix; None takes the small one
        that comes with jaxedit.
    text_scale, image_scale: s_T and s_I of the three-branch guidance (Brooks et al. 2023, Eq. 3).
    steps: of DDIM, between the noise level drawn and 0.
    lower, upper: the range of that level, as fractions of the table.
    size: the longest side that the editor sees, in pixels; None the views' own. Sides become multiples of the autoencoder's factor.
    together: the three branches as one batch; False takes them one at a time, for a third of the memory.
    """

    instruction: str = ""
    negative: str = ""
    editor: str | None = None
    text_scale: float = 7.5
    image_scale: float = 1.5
    steps: int = 20
    lower: float = 0.02
    upper: float = 0.98
    size: int | None = None
    together: bool = True

    def __post_init__(self) -> None:
        _check_range("lower and upper", self.lower, self.upper)
        if self.steps < 1:
            raise UserError(f"edit.steps is {self.steps}; it must be 1 or more")
        if self.size is not None and self.size < 8:
            raise UserError(f"edit.size is {self.size}; give 8 or more pixels, or None")


@dataclass(frozen=True)
class TrainingConfig:
    """How the field follows the edited images.

    patches, side: of a step, squares of `side` pixels. l1, perceptual: weights of the two losses; the second counts only with
        `lpips`, a folder or file of LPIPS weights.
    resolution, rows, keep: storage of a voxel grid while it is edited, as of a `Fit`: a packed one has no room for what an edit adds,
        so 0 rows (the default) store it whole; None leaves it as it is, which other fields need.
    distortion, interlevel: as of a `Fit`.
    """

    patches: int = 16
    side: int = 32
    l1: float = 1.0
    perceptual: float = 1.0
    lpips: str | None = None
    resolution: Shape | None = None
    rows: int | None = 0
    keep: float = 0.001
    distortion: float = 0.0
    interlevel: float = 1.0
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=1e-2, epsilon=1e-15, clip_norm=None, b2=0.999
        )
    )

    def __post_init__(self) -> None:
        if self.patches < 1 or self.side < 1:
            raise UserError(
                f"training has {self.patches} patches of side {self.side}; both must be 1 or more"
            )


@dataclass(frozen=True)
class Stage:
    """A stretch of an edit, one phase of its run.

    steps: how many. every: a step edits views if its number, from 0, is a multiple of this; 0 edits none.
    views: how many are edited then, one after the other; the order is cyclic, from the first view of the run on.
    lower, upper: other noise levels than the edit's, as fractions; 1.0 for both is the noisiest, where hardly anything is left of
        the render.
    follows: what the field is fitted to: the "images", the editor's "score", or "nothing".
    """

    name: str
    steps: int
    every: int = 10
    views: int = 1
    lower: float | None = None
    upper: float | None = None
    follows: Literal["images", "score", "nothing"] = "images"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.every < 0 or self.views < 1:
            raise UserError(
                f"stage {self.name} has {self.steps} steps and edits {self.views} views every {self.every}; "
                "steps and views must be 1 or more, every 0 or more"
            )
        if (self.lower is None) != (self.upper is None):
            raise UserError(f"stage {self.name} has one of lower and upper; give both or none")
        if self.lower is not None and self.upper is not None:
            _check_range(f"lower and upper of stage {self.name}", self.lower, self.upper)


def _check_range(what: str, lower: float, upper: float) -> None:
    if not 0.0 <= lower <= upper <= 1.0:
        raise UserError(f"{what} are {lower:g} and {upper:g}; they must rise within 0 and 1")


def stages_of(
    method: str, steps: int, views: int, *, every: int | None = None
) -> tuple[Stage, ...]:
    """The stages of a method for a scene of so many training views.

    steps: in which a field follows. every: other steps between edits than the method's own. Raises UserError for a method that does not
    exist, or does not edit now and then.
    """
    if method not in get_args(Method):
        raise UserError(f"method {method!r}; give one of {', '.join(get_args(Method))}")
    if every is not None and method not in ("in2n", "intervals"):
        raise UserError(f"every is {every}, and {method} does not edit now and then; leave it out")
    all_views = Stage("edit", views, 1, 1, 1.0, 1.0, "nothing")
    made: Mapping[str, Callable[[], tuple[Stage, ...]]] = {
        "in2n": lambda: (Stage("edit", steps, 10 if every is None else every),),
        "intervals": lambda: (
            Stage("edit", steps, 2500 if every is None else every, views, 0.7, 0.98),
        ),
        "one-time": lambda: (all_views, Stage("follow", steps, 0)),
        "per-view": lambda: (all_views,),
        "sds": lambda: (Stage("distill", steps, 0, follows="score"),),
    }
    return made[method]()
