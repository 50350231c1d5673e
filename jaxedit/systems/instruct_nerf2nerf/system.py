"""Instruct-NeRF2NeRF as a system: a fitted scene, an instruction, and the stages in which the scene follows it."""

import dataclasses
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from jaxedit.fields.voxel_grid import VoxelGridConfig
from jaxedit.scene.cameras import Cameras
from jaxedit.scene.scene import Views
from jaxedit.systems.instruct_nerf2nerf.config import EditConfig, Stage, TrainingConfig
from jaxedit.systems.instruct_nerf2nerf.editor import Weights, make_editor, to_pixels
from jaxedit.systems.instruct_nerf2nerf.training import Setting, stage_phases, start_state
from jaxedit.systems.reconstruct.config import Fit
from jaxedit.systems.reconstruct.memory import training_bytes
from jaxedit.systems.reconstruct.report import truth_of
from jaxedit.systems.reconstruct.stored import Fitted
from jaxedit.systems.reconstruct.system import Reconstruct
from jaxvid.core.errors import UserError
from jaxvid.core.mesh import MeshConfig
from jaxvid.core.peak import peak_bytes
from jaxvid.models.lpips import smallest_side
from jaxvid.pipelines.latent import LatentDiffusion
from jaxvid.train.phase import Phase
from jaxvid.train.session import LoopConfig
from jaxvid.train.state import State, abstract
from jaxvid.weights.lpips import load_lpips

LARGE = 1 << 30  # bytes that an editor works in, from which on it is said what would need fewer


@dataclass(frozen=True)
class InstructNerf2Nerf:
    """An edit of a fitted scene.

    base: the reconstruction as far as it was fitted. edit, training: see their classes. stages: one phase each, no two of a name.

    Example:
        fitted = load_fitted("runs/mic")
        system = InstructNerf2Nerf.of(fitted, EditConfig("make it red"), stages_of("in2n", 3000, views=100))
        views = scene.views["train"]
        given = system.open(load_latent_diffusion(folder), views.cameras, scene.box, system.originals(views))
        state = fit(run, given.phases, system.loop, start=given.start(fitted.state))
    """

    base: Reconstruct
    edit: EditConfig
    stages: tuple[Stage, ...]
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    loop: LoopConfig = dataclasses.field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        if not self.edit.instruction.strip():
            raise UserError("the instruction is empty; say what to change")
        if not self.stages:
            raise UserError("an edit has no stage; give at least one")
        names = [fit.name for fit in self.base.fits] + [stage.name for stage in self.stages]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"fits and stages share the name {twice[0]}; rename the stage")

    @classmethod
    def of(
        cls,
        fitted: Fitted,
        edit: EditConfig,
        stages: tuple[Stage, ...],
        training: TrainingConfig | None = None,
        **more: Any,
    ) -> "InstructNerf2Nerf":
        """The edit of a fitted scene, from the fit that it has reached on; stages named as earlier ones get a number."""
        base = replace(fitted.system, fits=fitted.system.fits[: fitted.fit + 1])
        taken = {fit.name for fit in base.fits}
        stages = tuple(replace(stage, name=_unused(stage.name, taken)) for stage in stages)
        return cls(base, edit, stages, training or TrainingConfig(), **more)

    @property
    def reconstruction(self) -> Reconstruct:
        """The reconstruction that the edited scene is: the base's fits, and one for each stage."""
        training = self.training

        def fit(stage: Stage, index: int) -> Fit:
            first = index == 0
            return Fit(
                stage.name,
                steps=stage.steps,
                rays=training.patches * training.side**2,
                resolution=training.resolution if first and self._voxels else None,
                rows=training.rows if first and self._voxels else None,
                keep=training.keep,
                colour_loss="l1",
                distortion=training.distortion,
                interlevel=training.interlevel,
                optimizer=training.optimizer,
            )

        stages = tuple(fit(stage, i) for i, stage in enumerate(self.stages))
        return replace(self.base, fits=(*self.base.fits, *stages), mesh=self.mesh, loop=self.loop)

    @property
    def _voxels(self) -> bool:
        return isinstance(self.base.field, VoxelGridConfig)

    def originals(self, views: Views) -> UInt8[np.ndarray, "n h w 3"]:
        """The views over the background that their renders have: what the editor is told, and the first working images."""
        laid = [truth_of(views, i, self.base.background) for i in range(len(views))]
        return np.stack([np.asarray(to_pixels(jnp.asarray(image))) for image in laid])

    def renders(self, fitted: Fitted, cameras: Cameras) -> UInt8[np.ndarray, "n h w 3"]:
        """The scene as it is, for an edit of an edited scene, whose images there are none of."""

        def view(index: int) -> np.ndarray:
            pixels = self.base.render_image(
                fitted.frame, fitted.state, cameras, index, fit=fitted.fit
            )
            return np.asarray(to_pixels(pixels.colour))

        return np.stack([view(i) for i in range(len(np.asarray(cameras.pose)))])

    def open(
        self,
        model: LatentDiffusion,
        cameras: Cameras,
        box: np.ndarray | None,
        originals: UInt8[np.ndarray, "n h w 3"],
        masks: np.ndarray | None = None,
    ) -> "Opened":
        """The edit with its editor and its views. Raises UserError for a model that cannot edit, or views too small."""
        count, height, width, _ = originals.shape
        editor, told = make_editor(model, self.edit, height, width)
        for stage in self.stages:
            if stage.lower is not None and stage.upper is not None:
                editor.revision(stage.lower, stage.upper)
        given = Weights(told, self._lpips())
        setting = Setting(
            self.reconstruction,
            len(self.base.fits),
            self.base.frame(box),
            cameras,
            editor,
            abstract(given),
            self.training,
            self.stages,
            count,
            masks,
        )
        return Opened(setting, given, originals)

    def estimate(self, opened: "Opened") -> str:
        """A line on the memory that the edit will need, for people, before anything is compiled."""
        frame, whole, first = opened.setting.frame, self.reconstruction, len(self.base.fits)
        field = max(training_bytes(whole, frame, first + i) for i in range(len(self.stages)))
        editor = sum(leaf.nbytes for leaf in jax.tree.leaves(opened.weights))
        images = 2 * opened.originals.nbytes
        height, width = opened.setting.editor.sides
        works, hint = opened.edit_bytes(), ""
        if self.edit.together and works > LARGE:
            apart = replace(opened.setting.editor, edit=replace(self.edit, together=False))
            less = replace(opened, setting=opened.setting._replace(editor=apart)).edit_bytes()
            hint = f" ({less / 2**30:.1f} with --edit.together False)"
        return (
            f"memory   about {field / 2**30:.1f} GiB for the field, {editor / 2**30:.2f} GiB of editor weights, "
            f"{works / 2**30:.1f} GiB in which it works at {width}x{height}{hint}, {images / 2**30:.2f} GiB of images; views are "
            f"rendered {whole.image_chunk(first)} rays at a time"
        )

    def _lpips(self) -> Any:
        if self.training.lpips is None:
            return None
        network = load_lpips(self.training.lpips)
        least = smallest_side(network.network)
        if self.training.side < least:
            raise UserError(
                f"training.side is {self.training.side}; LPIPS on {network.network} needs {least} or more"
            )
        return network


@dataclass(frozen=True)
class Opened:
    """An edit that can begin: what its phases share, the weights, and the views before it."""

    setting: Setting
    weights: Weights
    originals: UInt8[np.ndarray, "n h w 3"]

    @property
    def phases(self) -> list[Phase]:
        """One phase a stage."""
        return stage_phases(self.setting)

    def start(self, state: State) -> State:
        """What `fit` begins with, given at every start, from the fitted state."""
        return start_state(state, self.originals, self.weights)

    def edit_bytes(self) -> int:
        """What the edit of a view works in besides weights and images, by `jaxvid.core.peak`."""
        editor = self.setting.editor
        view = jax.ShapeDtypeStruct(self.originals.shape[1:], jnp.float32)
        edit = partial(editor.edited, lower=editor.edit.lower, upper=editor.edit.upper)
        return peak_bytes(edit, abstract(self.weights.told), view, view, jax.random.key(0))

    def edit_view(
        self,
        image: UInt8[np.ndarray, "h w 3"],
        original: UInt8[np.ndarray, "h w 3"],
        key: jax.Array,
        lower: float,
        upper: float,
    ) -> UInt8[np.ndarray, "h w 3"]:
        """One picture edited in 2-D, as a step would."""
        a, b = (jnp.asarray(picture, jnp.float32) / 255.0 for picture in (image, original))
        program = jax.jit(self.setting.editor.edited, static_argnums=(4, 5))
        return np.asarray(to_pixels(program(self.weights.told, a, b, key, lower, upper)))


def _unused(name: str, taken: set[str]) -> str:
    """The name, or the first of name2, name3, ... that is not taken."""
    found, number = name, 2
    while found in taken:
        found, number = f"{name}{number}", number + 1
    return found
