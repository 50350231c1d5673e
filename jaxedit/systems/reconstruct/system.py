"""A reconstruction as a system: a configuration that fits, renders and scores."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from jaxedit.fields.field import Frame
from jaxedit.render.compositing import Pixels
from jaxedit.render.image import chunked
from jaxedit.scene.cameras import Cameras, Rays, image_rays
from jaxedit.scene.load import load_scene
from jaxedit.scene.scene import Scene, Views
from jaxedit.systems.reconstruct.config import FitConfig
from jaxedit.systems.reconstruct.model import Model
from jaxedit.systems.reconstruct.report import make_report
from jaxedit.systems.reconstruct.training import (
    abstract_model,
    frame_of,
    look_at_cells,
    phases,
    render,
)
from jaxvid.core.paths import unflatten
from jaxvid.train.phase import Phase
from jaxvid.train.state import Params, State, weights

CHUNK_BYTES = 256 << 20  # of a chunk's samples while an image is rendered
SAMPLE_BYTES = 4 * 24  # a sample's points, weights and interpolation, as floats


@dataclass(frozen=True)
class Reconstruct(FitConfig):
    """A `FitConfig` with the functions of a system.

    Example:
        system = jaxvid.load_config("reconstruct/voxels")
        scene = system.scene()
        state = fit(run, system.phases(scene), system.loop)
        pixels = system.render_view(state, scene, scene.views["test"].cameras, 0)
    """

    def scene(self) -> Scene:
        """The scene of `data`."""
        return load_scene(self.data)

    def phases(self, scene: Scene, *, with_reports: bool = False) -> list[Phase]:
        """One phase a fit; with reports they score and show held-out views."""
        if not with_reports:
            return phases(self, scene)
        found = []
        for index in range(len(self.fits)):

            def view(state: State, views: Views, number: int, index: int = index) -> np.ndarray:
                pixels = self.render_view(state, scene, views.cameras, number, fit=index)
                return np.asarray(pixels.colour)

            report = make_report(scene, view, self.background, self.heldout)
            found.append(phases(self, scene, report)[index])
        return found

    def model(self, frame: Frame, params: Params, fit: int = -1) -> Model:
        """The model of a fit (the last) with these values."""
        return unflatten(abstract_model(self, frame, fit % len(self.fits)), params)

    def render_view(
        self, state: State, scene: Scene, cameras: Cameras, view: int, *, fit: int = -1
    ) -> Pixels:
        """One view as arrays [height, width, ...]; `state` is that of the fit."""
        draw = _image_program(self, frame_of(self, scene), fit % len(self.fits), self.image_chunk())
        one = cameras.select([view])
        return draw(weights(state), state.get("extra", {}).get("level"), one)

    def image_chunk(self) -> int:
        """Rays rendered at once for an image: `chunk`, or as many as `CHUNK_BYTES` of samples are."""
        if self.chunk is not None:
            return self.chunk
        return max(256, CHUNK_BYTES // (self.render.samples * SAMPLE_BYTES))


@lru_cache(maxsize=16)
def _image_program(
    config: FitConfig, frame: Frame, fit: int, chunk: int
) -> Callable[[Params, Any, Cameras], Pixels]:
    """The compiled function (params, level, one camera) -> its image."""
    abstract = abstract_model(config, frame, fit)

    def image(params: Params, level: Any, cameras: Cameras) -> Pixels:
        model = unflatten(abstract, params)
        occupied = look_at_cells(config, model, level)

        def one(whole: tuple[Model, Any], rays: Rays) -> Pixels:
            return render(config, whole[0], rays, occupied=whole[1])[0]

        return chunked(one, chunk)((model, occupied), image_rays(cameras, 0))

    return jax.jit(image)
