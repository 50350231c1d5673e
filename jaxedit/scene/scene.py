"""A captured scene: posed images in a world of known bounds, whatever the format that they came in."""

from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, UInt8

from jaxedit.scene.cameras import Cameras
from jaxedit.scene.images import resized_pixels, whole_pixels
from jaxedit.scene.poses import Similarity

Split: TypeAlias = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Views:
    """Images of one split with their cameras.

    images: RGB, or RGBA with *straight* alpha (colours not multiplied by it), whatever the files had.
    masks: True where a pixel counts; None where all do.
    names: of the image files, relative to the scene's folder.
    """

    cameras: Cameras
    images: UInt8[np.ndarray, "n h w c"]
    names: tuple[str, ...]
    masks: Bool[np.ndarray, "n h w"] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def select(self, index: list[int]) -> "Views":
        """The views of those indices."""
        return Views(
            cameras=self.cameras.select(index),
            images=self.images[index],
            names=tuple(self.names[i] for i in index),
            masks=None if self.masks is None else self.masks[index],
        )

    def resized(self, width: int, height: int) -> "Views":
        """The views at another size, at most their own, by area means."""
        masks = self.masks
        return replace(
            self,
            cameras=self.cameras.resized(width, height),
            images=np.stack([resized_pixels(image, width, height) for image in self.images]),
            masks=None
            if masks is None
            else np.stack([whole_pixels(mask, width, height) for mask in masks]),
        )


@dataclass(frozen=True)
class Scene:
    """What a loader returns.

    views: by split; a split that has no image is absent.
    box: the corners (lowest, highest) of the axis-aligned box that holds the object, in the scene's world; None for a
        scene without bounds, which is then seen through a contraction.
    near, far: distances from a camera between which there is anything to see.
    transform: from the file's world to the scene's.
    applied: from the capture's original world (often COLMAP's) to the file's, where the file records one.
    missing: names of images that the files list and the folder lacks.
    format: the loader's name.
    """

    views: dict[Split, Views]
    box: Float[np.ndarray, "2 3"] | None
    near: float
    far: float
    format: str
    transform: Similarity = field(default_factory=Similarity.identity)
    applied: Similarity = field(default_factory=Similarity.identity)
    missing: tuple[str, ...] = ()

    def moved(self, transform: Similarity) -> "Scene":
        """The scene in another world; the box becomes the box around the old one's corners."""
        box = self.box
        if box is not None:
            corners = np.array(
                [[box[i][0], box[j][1], box[k][2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)]
            )
            corners = transform.points(corners)
            box = np.stack([corners.min(axis=0), corners.max(axis=0)])
        return replace(
            self,
            views={
                split: replace(views, cameras=transform.cameras(views.cameras))
                for split, views in self.views.items()
            },
            box=box,
            near=self.near * transform.scale,
            far=self.far * transform.scale,
            transform=transform.after(self.transform),
        )


def composite(
    images: UInt8[np.ndarray, "*n c"] | Float[np.ndarray, "*n c"],
    background: Float[np.ndarray, "3"],
) -> Float[np.ndarray, "*n 3"]:
    """RGB in [0, 1] over a background colour. Images are RGB or straight-alpha RGBA, in bytes or in [0, 1]."""
    values = images.astype(np.float32) / 255.0 if images.dtype == np.uint8 else images
    if values.shape[-1] == 3:
        return values
    alpha = values[..., 3:]
    return values[..., :3] * alpha + (1.0 - alpha) * background.astype(np.float32)
