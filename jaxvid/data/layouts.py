"""The public data sets of the video-diffusion papers, in the folder layouts in which they are found.

Protocols (Ho et al. 2022, arXiv 2204.03458, section 4 and appendix A; all at 64x64):
  UCF-101        16 frames, unconditional or by class; trained on all 13,320 videos
  BAIR pushing   16 frames, of which 1 is given and 15 are predicted; mirrored in training; 256 test videos
  Kinetics-600   16 frames, of which 5 are given and 11 are predicted; random windows
`given` records how many frames of a test clip the protocol gives to the model; a caller passes them as `known`.

None of these sets is shipped or fetched here.
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from absl import logging

from jaxvid.core.errors import UserError
from jaxvid.data.clips import VideoFile, VideoFiles
from jaxvid.data.folder import list_clips
from jaxvid.data.source import ClipView, Split


@dataclass(frozen=True, kw_only=True)
class Ucf101Data(ClipView):
    """UCF-101: `UCF-101/<Class>/v_<Class>_g01_c01.avi` and `ucfTrainTestlist/{classInd,trainlist01,...}.txt`.

    path: the folder that holds both. official_split: 1, 2 or 3 divides the videos by the published lists; None
    trains on all of them as the papers do, and then "test" is the test list of split 1, which was trained on.
    Labels are 0-based in the order of classInd.txt (alphabetical without it); the caption is the class in words.
    """

    path: str
    official_split: Literal[1, 2, 3] | None = None
    cache_mb: int = 256
    given: int = 0

    def source(self, split: Split = "train") -> VideoFiles:
        """Opens a split; raises `UserError` if the layout is not as described."""
        root = _folder(self.path, "UCF-101", "the class folders of UCF-101")
        files = [file for file in list_clips(str(root)) if file.path.count("/") == 1]
        found = sorted({file.path.split("/")[0] for file in files})
        names = self._class_names(found)
        if split == "test" or self.official_split is not None:
            listed = self._listed(split)
            files = [file for file in files if file.path in listed]
            _tell_absent(root, len(listed) - len(files), len(listed))
        files = [
            file._replace(captions=(_words(name),), label=names.index(name))
            for file in files
            for name in file.path.split("/")[:1]
        ]
        return VideoFiles(str(root), files, self.view(), names, self.cache_mb << 20)

    def _class_names(self, found: list[str]) -> list[str]:
        index = Path(self.path) / "ucfTrainTestlist/classInd.txt"
        if not index.is_file():
            return found
        names = [
            line.split()[1] for line in index.read_text().splitlines() if len(line.split()) == 2
        ]
        unknown = sorted(set(found) - set(names))
        if unknown:
            raise UserError(f"{index}: does not name the class folders {', '.join(unknown[:3])}")
        return names

    def _listed(self, split: Split) -> set[str]:
        path = Path(self.path) / f"ucfTrainTestlist/{split}list0{self.official_split or 1}.txt"
        if not path.is_file():
            raise UserError(f"{path}: no such file; unpack UCF101TrainTestSplits beside the videos")
        return {line.split()[0] for line in path.read_text().splitlines() if line.strip()}


@dataclass(frozen=True, kw_only=True)
class BairData(ClipView):
    """BAIR robot pushing (small, 64x64) as folders of images: `{train,test}/traj_0_to_255/0/{0..29}.png`.

    The published archive (softmotion30_44k) holds TFRecord files, which only TensorFlow reads; the usual converters
    write this tree, with or without `processed_data/` above it. To have one file instead of 1.3 million images, run
    `jaxvid data prepare PATH/train OUT` once and use `TfdsData`. The fixed view is the first 16 of the 30 frames.
    """

    path: str
    flip: bool = True
    cache_mb: int = 256
    given: int = 1

    def source(self, split: Split = "train") -> VideoFiles:
        """Opens a split; raises `UserError` if it holds no folders of images."""
        root = Path(self.path)
        root = root / "processed_data" if (root / "processed_data").is_dir() else root
        root = _folder(str(root), split, "trajectories as folders of images")
        files = [file for file in list_clips(str(root)) if not Path(file.path).suffix]
        if not files:
            raise UserError(
                f"{root}: no folders of numbered images; convert the TFRecord files first"
            )
        return VideoFiles(str(root), files, self.view(), cache_bytes=self.cache_mb << 20)


@dataclass(frozen=True, kw_only=True)
class Kinetics600Data(ClipView):
    """Kinetics-600: `<split>/<class>/<id>_000010_000020.mp4` and the published `<split>.csv`.

    path: holds `train`, `val` (or `validate`, `validation`) and `test` folders, and the tables beside them or in
    `annotations/`. The table is optional; it gives the class and, for a file that is named by its id alone and so
    was not cut, the seconds that belong to the data set. Rows whose video is absent are passed over, because many have
    left the web. test_folder: the papers' 50k evaluation clips come from the test split.
    Labels are the alphabetical order of the classes; the caption is the class.
    """

    path: str
    test_folder: Literal["test", "val"] = "test"
    cache_mb: int = 256
    given: int = 5

    def source(self, split: Split = "train") -> VideoFiles:
        """Opens a split; raises `UserError` if it holds no clips."""
        folder = "train" if split == "train" else self.test_folder
        aliases = {"val": ("val", "validate", "validation")}.get(folder, (folder,))
        rows = self._rows(aliases)
        names = self._class_names()
        present = [name for name in aliases if (Path(self.path) / name).is_dir()]
        root = _folder(self.path, present[0] if present else folder, "the class folders of a split")
        files = [_kinetics_file(file, rows) for file in list_clips(str(root))]
        _tell_absent(root, len(rows) - len(files), len(rows))
        labelled = [file for file in files if file.captions]
        if len(labelled) not in (0, len(files)):
            odd = next(file.path for file in files if not file.captions)
            raise UserError(
                f"{root}: {odd} is in no class folder and not in the table; move it out"
            )
        order = {name: i for i, name in enumerate(names)}
        files = [
            file._replace(label=order[file.captions[0]]) if file.captions else file
            for file in files
        ]
        return VideoFiles(str(root), files, self.view(), names, self.cache_mb << 20)

    def _class_names(self) -> list[str]:
        """The classes of all splits, so that a class which one split lacks shifts no label."""
        names = set()
        for aliases in (("train",), ("val", "validate", "validation"), ("test",)):
            names |= {row[0] for row in self._rows(aliases).values() if row[0]}
            folders = [Path(self.path) / alias for alias in aliases]
            found = [part for folder in folders if folder.is_dir() for part in folder.iterdir()]
            names |= {part.name.replace("_", " ") for part in found if part.is_dir()}
        return sorted(names)

    def _rows(self, aliases: Sequence[str]) -> dict[str, tuple[str, float, float]]:
        """Video id to (class, start, end) from the split's table; empty without a table."""
        places = [
            Path(self.path) / part / f"{name}.csv"
            for part in ("", "annotations")
            for name in aliases
        ]
        table = next((path for path in places if path.is_file()), None)
        if table is None:
            return {}
        rows = {}
        with table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                try:
                    times = float(row["time_start"]), float(row["time_end"])
                    rows[row["youtube_id"]] = (row.get("label") or "", *times)
                except (KeyError, TypeError, ValueError) as error:
                    raise UserError(
                        f"{table}: a row is not as published (label,youtube_id,time_start,time_end,split)"
                    ) from error
        return rows


def _kinetics_file(file: VideoFile, rows: dict[str, tuple[str, float, float]]) -> VideoFile:
    """The file with its class and, if it was not cut, the seconds that count."""
    stem = Path(file.path).stem
    cut = re.fullmatch(r"(.+)_\d{6}_\d{6}", stem)
    row = rows.get(cut[1] if cut else stem)
    parent = Path(file.path).parent.name
    name = row[0] if row and row[0] else parent.replace("_", " ")
    if row and not cut:
        file = file._replace(start=row[1], end=row[2])
    return file._replace(captions=(name,) if name else ())


def _folder(path: str, name: str, what: str) -> Path:
    """`path/name`, or `path` itself where it is that folder already."""
    for folder in (Path(path) / name, Path(path)):
        if folder.is_dir() and folder.name == name:
            return folder
    raise UserError(f"{Path(path) / name}: no such folder; it should hold {what}")


def _tell_absent(root: Path, absent: int, listed: int) -> None:
    if absent > 0:
        logging.warning("%s: %d of the %d videos of this split are absent", root, absent, listed)


def _words(name: str) -> str:
    """`ApplyEyeMakeup` as "apply eye makeup"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
