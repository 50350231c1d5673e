"""TFDS data sets without TensorFlow.

Read are data sets in the ArrayRecord format whose video is either encoded bytes (`Text` or a scalar object) or a
uint8 tensor `[t, h, w, 3]`; `jaxvid data prepare` writes such a set. TFRecord files, and the features `Image` and
`Video`, need TensorFlow and are refused.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxvid.core.errors import UserError
from jaxvid.data.clips import ClipSource, Item
from jaxvid.data.media import natural_order
from jaxvid.data.source import ClipView, Split


@dataclass(frozen=True, kw_only=True)
class TfdsData(ClipView):
    """A TFDS data set; see `ClipView` for the fields that say how clips are cut.

    name: the folder that holds `dataset_info.json` (or the folder of its versions, of which the newest is taken), or
    the name of a set below `data_dir` ("my_clips", "my_clips:1.0.0"). train, test: its splits, also slices such as
    "train[:95%]". video, caption, label: its features; caption and label may be absent. A sequence of texts holds
    alternative captions.
    """

    name: str
    data_dir: str | None = None
    train: str = "train"
    test: str = "test"
    video: str = "video"
    caption: str = "caption"
    label: str = "label"
    cache_mb: int = 256

    def source(self, split: Split = "train") -> "TfdsSource":
        """Opens a split; raises `UserError` if the set or split is absent or needs TensorFlow."""
        import tensorflow_datasets as tfds

        builder = _builder(self.name, self.data_dir)
        info = builder.info
        if info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
            raise UserError(
                f"{info.full_name}: stored as {info.file_format.value}, which needs TensorFlow; where it is installed run "
                f"`tfds convert_format --dataset_version_dir={builder.data_dir} --out_file_format=array_record --out_dir=OUT`"
            )
        features: Any = info.features
        if not isinstance(features, tfds.features.FeaturesDict) or self.video not in features:
            raise UserError(
                f"{info.full_name}: has no feature {self.video!r}, only {_keys(features)}; set video"
            )
        _check_video(info.full_name, self.video, features[self.video])
        wanted = self.train if split == "train" else self.test
        try:
            part = info.splits[wanted]
        except (ValueError, KeyError, AssertionError) as error:
            known = ", ".join(sorted(info.splits)) or "none"
            raise UserError(
                f"{info.full_name}: no split {wanted!r}, only {known}; set {split}"
            ) from error
        if not part.num_examples:
            raise UserError(f"{info.full_name}: split {wanted!r} is empty")
        label: Any = features[self.label] if self.label in features else None  # noqa: SIM401
        names = list(label.names) if isinstance(label, tfds.features.ClassLabel) else []
        keys = (
            self.video,
            self.caption if self.caption in features else None,
            self.label if names else None,
        )
        return TfdsSource(
            str(builder.data_dir), wanted, keys, self.view(), names, self.cache_mb << 20
        )


class TfdsSource(ClipSource):
    """One split of an ArrayRecord data set.

    folder: the version's folder. keys: names of the video, caption and label features, None where absent.
    """

    def __init__(
        self,
        folder: str,
        split: str,
        keys: tuple[str, str | None, str | None],
        view: ClipView,
        class_names: list[str],
        cache_bytes: int = 0,
    ):
        super().__init__(view, keys[1] is not None, class_names, cache_bytes)
        self.folder = folder
        self.split = split
        self.keys = keys
        self._length = len(self._records())

    def _reset(self) -> None:
        super()._reset()
        self._opened: Any = None  # file handles stay in the process that opened them

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        del state["_opened"]
        return state

    def _records(self) -> Any:
        if self._opened is None:
            import tensorflow_datasets as tfds

            builder: Any = tfds.builder_from_directory(self.folder)
            # The video stays as it is stored, and is decoded when and as far as it is needed.
            self._opened = builder.as_data_source(self.split)
        return self._opened

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        digest = hashlib.sha256(repr((self.split, self.keys, self.view)).encode())
        digest.update((Path(self.folder) / "dataset_info.json").read_bytes())
        return f"TfdsSource({self._length} clips, {digest.hexdigest()[:16]})"

    def name(self, index: int) -> str:
        """Folder, split and record number."""
        return f"{self.folder}:{self.split}[{index}]"

    def item(self, index: int) -> Item:
        """Reads the record."""
        record = self._records()[index]
        video, caption, label = (None if key is None else record[key] for key in self.keys)
        texts: Any = caption if isinstance(caption, list | tuple | np.ndarray) else [caption]
        captions = tuple(_text(text) for text in texts if text is not None)
        media = video if isinstance(video, bytes) else np.asarray(video)
        return Item(media, captions, None if label is None else int(label))


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    folder = Path(name)
    if folder.is_dir():
        versions = [path.parent for path in folder.glob("*/dataset_info.json")]
        if not (folder / "dataset_info.json").is_file():
            if not versions:
                raise UserError(
                    f"{name}: no dataset_info.json in it or one level below; give the folder of a data set"
                )
            folder = max(versions, key=lambda path: natural_order(path.name))
        return tfds.builder_from_directory(folder)
    try:
        return tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        where = data_dir or "the default folder of TFDS"
        raise UserError(f"{name}: no such data set in {where}; give its folder") from error


def _keys(features: Any) -> str:
    return ", ".join(sorted(features)) if hasattr(features, "keys") else type(features).__name__


def _check_video(set_name: str, key: str, feature: Any) -> None:
    """Raises unless the feature is bytes or a video tensor."""
    import tensorflow_datasets as tfds

    kind = type(feature).__name__
    if kind in ("Text", "Scalar") and feature.np_dtype == np.object_:
        return
    if type(feature) is tfds.features.Tensor and feature.np_dtype == np.uint8:
        shape: Any = feature.shape
        if len(shape) == 4 and shape[-1] == 3:
            return
        kind = f"Tensor{list(shape)}"
    raise UserError(
        f"{set_name}: feature {key!r} is {kind}; encoded bytes or a uint8 [t, h, w, 3] tensor can be read: save the clips "
        "as files and run `jaxvid data prepare FOLDER OUT`"
    )
