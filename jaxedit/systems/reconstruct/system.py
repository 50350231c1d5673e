"""A reconstruction as a system: a configuration that fits, renders and scores."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from jaxedit.fields.field import Frame
from jaxedit.render.compositing import Pixels
from jaxedit.scene.cameras import Cameras
from jaxedit.scene.load import load_scene
from jaxedit.scene.scene import Scene, Views
from jaxedit.systems.reconstruct.config import FitConfig
from jaxedit.systems.reconstruct.memory import Use, chunk_of, training_bytes
from jaxedit.systems.reconstruct.model import Model
from jaxedit.systems.reconstruct.report import Scores, make_report, score, scored_views
from jaxedit.systems.reconstruct.training import (
    abstract_model,
    frame_of,
    look_at_cells,
    model_of,
    phases,
    render_view,
)
from jaxvid.core.mesh import make_mesh, replicated
from jaxvid.core.paths import flatten
from jaxvid.models.lpips import LPIPS
from jaxvid.train.phase import Phase
from jaxvid.train.state import Params, State, weights
from jaxvid.weights.lpips import load_lpips


@dataclass(frozen=True)
class Reconstruct(FitConfig):
    """A `FitConfig` with the functions of a system.

    Example:
        system = jaxvid.load_config("reconstruct/voxels")
        scene = system.scene()
        system = system.seeing(scene)
        state = fit(run, system.phases(scene), system.loop)
        pixels = system.render_image(system.frame(scene.box), state, scene.views["test"].cameras, 0)
    """

    @property
    def reconstruction(self) -> "Reconstruct":
        """Itself: an edited scene's system has one too."""
        return self

    def scene(self) -> Scene:
        """The scene of `data`."""
        return load_scene(self.data)

    def seeing(self, scene: Scene) -> "Reconstruct":
        """The configuration with the scene's near and far where `render` leaves them open."""
        near = scene.near if self.render.near is None else self.render.near
        far = scene.far if self.render.far is None else self.render.far
        return replace(self, render=replace(self.render, near=near, far=far))

    def frame(self, box: Float[np.ndarray, "2 3"] | None) -> Frame:
        """The frame of the field for a scene's box, or for a scene without one."""
        return frame_of(self, box)

    def phases(self, scene: Scene, *, with_reports: bool = False) -> list[Phase]:
        """One phase a fit; with reports they score and show held-out views."""
        found = phases(self, scene)
        if not with_reports:
            return found
        frame, network = self.frame(scene.box), self.lpips_network()
        if network is not None:  # views that are too small are refused now, not at the first report
            _, height, width, _ = scored_views(scene)[1].images.shape
            images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
            jax.eval_shape(lambda images: network.features(images), images)

        def reported(phase: Phase, index: int) -> Phase:
            def view(state: State, views: Views, number: int) -> np.ndarray:
                pixels = self.render_image(frame, state, views.cameras, number, fit=index)
                return np.asarray(pixels.colour)

            report = make_report(scene, view, self.background, self.heldout, network)
            return replace(phase, report=report)

        return [reported(phase, index) for index, phase in enumerate(found)]

    def model(self, frame: Frame, state: State, fit: int = -1) -> Model:
        """The model of a fit (the last) with the state's values."""
        return model_of(self, frame, fit % len(self.fits), weights(state))

    def render_image(
        self,
        frame: Frame,
        state: State,
        cameras: Cameras,
        view: int,
        *,
        fit: int = -1,
        normals: bool = False,
    ) -> Pixels:
        """One view as arrays [height, width, ...]; `state` is that of the fit (the last).

        normals: colours are surface normals, (n + 1) / 2, over grey. One compile for all views of a size.
        """
        number = fit % len(self.fits)
        mesh = make_mesh(self.mesh)
        chunk = self.image_chunk(number, "normals" if normals else "image")
        draw = image_program(self, frame, number, chunk, normals, mesh)
        form = flatten(abstract_model(self, frame, number))
        params = {path: leaf for path, leaf in weights(state).items() if path in form}
        return draw(params, state.get("extra", {}).get("level"), cameras.select([view]))

    def image_chunk(self, fit: int = -1, use: Use = "image") -> int:
        """Rays rendered at once for an image of a fit (the last): `chunk`, or as many as `CHUNK_BYTES` of samples are."""
        if self.chunk is not None:
            return self.chunk
        return chunk_of(self, fit % len(self.fits), use)

    def estimate(self, scene: Scene) -> str:
        """A line on the memory that the fits will need, for people, before anything starts."""
        frame = self.frame(scene.box)
        largest = max(training_bytes(self, frame, index) for index in range(len(self.fits)))
        pixels = sum(views.images.nbytes for views in scene.views.values())
        return (
            f"memory   about {largest / 2**30:.1f} GiB while fitting, {pixels / 2**30:.2f} GiB of images on the host; "
            f"images are rendered {self.image_chunk()} rays at a time"
        )

    def fit_reached(self, step: int) -> int:
        """The number of the fit that the run's step belongs to."""
        ends = itertools.accumulate(fit.steps for fit in self.fits)
        return next((i for i, end in enumerate(ends) if step <= end), len(self.fits) - 1)

    def scores(self, state: State, scene: Scene, fit: int = -1) -> tuple[str, Scores]:
        """The split scored, and its scores, over all of its views; `state` is that of the fit (the last)."""
        split, views = scored_views(scene)
        frame = self.frame(scene.box)

        def view(views: Views, number: int) -> np.ndarray:
            pixels = self.render_image(frame, state, views.cameras, number, fit=fit)
            return np.asarray(pixels.colour)

        every, network = range(len(views)), self.lpips_network()
        return split, score(view, views, self.background, every, network=network)

    def lpips_network(self) -> LPIPS | None:
        """The network with the weights that `lpips` names, which are read once; None where it names none."""
        return None if self.lpips is None else _read_lpips(self.lpips)


_read_lpips = lru_cache(maxsize=2)(load_lpips)


@lru_cache(maxsize=16)
def image_program(
    config: FitConfig,
    frame: Frame,
    fit: int,
    chunk: int,
    normals: bool = False,
    mesh: Mesh | None = None,
) -> Callable[[Params, Any, Cameras], Pixels]:
    """The compiled function (params, level, one camera) -> its image, `chunk` rays at a time on each of the mesh's devices."""

    def image(params: Params, level: Any, cameras: Cameras) -> Pixels:
        model = model_of(config, frame, fit, params)
        occupied = look_at_cells(config, model, level)
        return render_view(config, model, cameras, 0, occupied, chunk, normals=normals, mesh=mesh)

    return jax.jit(image) if mesh is None else jax.jit(image, out_shardings=replicated(mesh))
