"""`jaxedit eval`: the scores of a fitted scene, and of its last edit (`jaxedit.edit_metrics`), with what each was measured on."""

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxedit.edit_metrics import (
    clip_scores,
    nearest_pairs,
    reprojection_error,
    resized_bicubic,
    truth_score,
)
from jaxedit.history import before_head, head, load_current, read_history
from jaxedit.scene.cameras import Cameras
from jaxedit.scene.load import SceneConfig, load_scene
from jaxedit.scene.paths import cameras_along, turntable
from jaxedit.scene.scene import Views
from jaxedit.systems.reconstruct.report import scored_views, truth_of
from jaxedit.systems.reconstruct.stored import Fitted, load_fitted
from jaxedit.toy_edits import rendered_views, shown_changes, summary
from jaxvid.core.checkpoint import Checkpointer
from jaxvid.core.errors import UserError
from jaxvid.core.progress import Progress
from jaxvid.data.writing import check_place, write_bytes
from jaxvid.models.clip import ClipImage, ClipText, normalized
from jaxvid.weights.registry import load_as
from jaxvid.weights.tokenizers import ClipTokenizer


class Clip(NamedTuple):
    """CLIP's two encoders, and how texts become tokens."""

    image: ClipImage
    text: ClipText
    tokenizer: ClipTokenizer


def load_clip(folder: Path) -> Clip:
    """CLIP with projections. Raises UserError.

    folder: transformers' CLIPModel with its tokenizer, such as clip-vit-base-patch32; or with folders image_encoder, text_encoder
        and tokenizer.
    """
    if (folder / "config.json").is_file():
        text, image, words = load_as(ClipText, folder), load_as(ClipImage, folder), folder
    else:
        text = load_as(ClipText, folder / "text_encoder")
        image = load_as(ClipImage, folder / "image_encoder")
        words = folder / "tokenizer"
    if text.projection is None or image.projection is None:
        raise UserError(f"{folder} has encoders without projections; give CLIP's with them")
    return Clip(image, text, ClipTokenizer(str(words), text.config.positions))


def embedded_images(
    clip: Clip, images: Sequence[Float[np.ndarray, "h w 3"]]
) -> Float[np.ndarray, "n d"]:
    """CLIP's vectors of images in [0, 1]."""
    size = clip.image.config.size
    encode = jax.jit(lambda model, x: model(normalized(x)).vector)
    found = [
        encode(clip.image, jnp.asarray(2.0 * resized_bicubic(image[None], size) - 1.0))
        for image in images
    ]
    return np.concatenate([np.asarray(vector) for vector in found])


def embedded_texts(clip: Clip, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
    """CLIP's vectors of texts."""
    tokens = clip.tokenizer.encode(list(texts)).tokens
    return np.asarray(jax.jit(lambda model, x: model(x).vector)(clip.text, jnp.asarray(tokens)))


def eval_command(arguments: Namespace) -> str:
    """`jaxedit eval`; returns what to print."""
    run: Path = arguments.source
    texts = (arguments.before, arguments.after)
    if (arguments.clip is None) != (None in texts) or (texts.count(None) == 1):
        raise UserError(
            "--clip needs --before and --after, captions of the two states, and they need it"
        )
    if arguments.json is not None:
        check_place(arguments.json)
    history = read_history(run)
    fitted = load_current(run)
    if not history.at:
        if arguments.clip is not None or arguments.truth is not None:
            raise UserError(
                f"{run} has no edit that counts; edit it, or leave --truth and --clip out"
            )
        found = {"scene": scene_scores(fitted)}
    else:
        before = load_fitted(before_head(run, history))
        found = {"edit": history.edits[history.at - 1], "strength": history.strength}
        found["consistency"] = consistency(before, fitted, head(run, history))
        if arguments.truth is not None:
            found["truth"] = against_truth(before, fitted, arguments.truth)
        if arguments.clip is not None:
            clip = load_clip(arguments.clip)
            found["clip"] = clip_figures(clip, before, fitted, texts, arguments.frames)
    if arguments.json is not None:
        write_bytes(arguments.json, (json.dumps(found, indent=1) + "\n").encode())
    return "\n".join(_lines(found))


def scene_scores(fitted: Fitted) -> dict[str, Any]:
    """Of a scene that was not edited, over its held-out views."""
    split, scores = fitted.system.scores(fitted.state, fitted.system.scene(), fitted.fit)
    return {
        "split": split,
        **{name: value for name, value in scores._asdict().items() if value == value},
    }


def consistency(before: Fitted, after: Fitted, run: Path) -> dict[str, Any]:
    """Reprojection errors of training views through the edited scene's depth; each view with its nearest neighbour.

    "edited images" are the editor's, which the scene followed; "renders" are of the scene after the edit, the least that half-covered
    pixels allow.
    """
    cameras = after.record.cameras["train"]
    images, depths, opacities = [], [], []
    with Progress("views", len(cameras)) as progress:
        for index in range(len(cameras)):
            pixels = after.system.render_image(
                after.frame, after.state, cameras, index, fit=after.fit
            )
            images.append(np.asarray(pixels.colour))
            depths.append(np.asarray(pixels.depth))
            opacities.append(np.asarray(pixels.opacity))
            progress.advance()
        progress.report({})
    pairs = nearest_pairs(cameras)
    found: dict[str, Any] = {"views": len(cameras)}
    error, pixels = reprojection_error(images, depths, opacities, cameras, pairs)
    found |= {"renders": error, "pixels": pixels}
    edited = edited_images(run)
    if edited is not None:
        found["edited images"] = reprojection_error(edited, depths, opacities, cameras, pairs)[0]
    return found


def edited_images(run: Path) -> list[Float[np.ndarray, "h w 3"]] | None:
    """The working images of an edit's newest checkpoint, in [0, 1]; None where it has none."""
    with Checkpointer(run / "checkpoints") as checkpoints:
        restored = checkpoints.restore(only=lambda path: path == "extra/images")
    if restored is None or "extra/images" not in restored.tree:
        return None
    return list(np.asarray(restored.tree["extra/images"]).astype(np.float32) / 255.0)


def against_truth(before: Fitted, after: Fitted, truth: Path) -> dict[str, Any]:
    """Against the true edited scene: a folder of pictures by the cameras of the scene's own held-out views."""
    scene = before.system.scene()
    split, views = scored_views(scene)
    true = load_scene(SceneConfig(path=str(truth), size=before.system.data.size))
    if split not in true.views or not _same_cameras(true.views[split], views):
        raise UserError(
            f"{truth} has no split {split} by the cameras of {before.system.data.path}; photograph it with them"
        )
    background, scores = before.system.background, []
    renders = zip(rendered_views(before, views), rendered_views(after, views), strict=True)
    for i, (a, b) in enumerate(renders):
        original, wanted = (
            truth_of(views, i, background),
            truth_of(true.views[split], i, background),
        )
        scores.append(truth_score(a, b, wanted, shown_changes(original, wanted)))
    found = summary(scores)
    return {"split": split, "views": len(scores), **found._asdict(), "passes": found.passes}


def _same_cameras(a: Views, b: Views) -> bool:
    def placed(cameras: Cameras) -> np.ndarray:
        return np.concatenate(
            [np.asarray(cameras.pose).reshape(len(cameras), -1), cameras.focal], axis=1
        )

    same = len(a) == len(b) and (a.cameras.width, a.cameras.height) == (
        b.cameras.width,
        b.cameras.height,
    )
    return same and bool(np.allclose(placed(a.cameras), placed(b.cameras), rtol=1e-3, atol=1e-3))


def clip_figures(
    clip: Clip, before: Fitted, after: Fitted, texts: Sequence[str], frames: int
) -> dict[str, Any]:
    """CLIP's scores over renders along a turntable, which no training view is on."""
    training = after.record.cameras["train"]
    path = turntable(np.asarray(training.pose, np.float64), frames)
    cameras = cameras_along(path, training)
    views = Views(cameras, np.zeros((frames, 1, 1, 3), np.uint8), tuple(map(str, range(frames))))
    old, new = (embedded_images(clip, rendered_views(scene, views)) for scene in (before, after))
    start, end = embedded_texts(clip, texts)
    scores = clip_scores(old, new, start, end)
    return {"frames": f"{frames} of a turntable", "captions": list(texts), **scores._asdict()}


def _lines(found: dict[str, Any]) -> list[str]:
    lines = []
    for group, values in found.items():
        if isinstance(values, dict):
            lines.append(f"{group}")
            lines += [f"  {name:24} {_shown(value)}" for name, value in values.items()]
        else:
            lines.append(f"{group:26} {_shown(values)}")
    return lines


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
