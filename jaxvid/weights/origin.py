"""Where weights come from and under which licence: `origin.json` beside converted weights.

The licence is the one that the publisher's README.md states in its front matter, or what the user says. It is recorded and
shown, and weights that are not for commercial use are announced; what a licence allows is for its reader to judge.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxvid.core.errors import UserError

FILE = "origin.json"
LARGEST = 1 << 20  # bytes of a README or an origin
_NON_COMMERCIAL = re.compile(r"(^|[^a-z])nc([^a-z]|$)|non-?_?commercial|research-only")
# Names of licences that do not say it.
_RESEARCH = ("deepfloyd-if-license", "gligen", "stabilityai-nc-research-community")


@dataclass(frozen=True)
class Origin:
    """What is known of weights.

    source: name of the folder that they were read from. url: where it was published. license: its name. stated: who says so,
    "README.md", "the user", or None where nobody does. files: sha256 of the files of tensors, by path in the source's folder.
    """

    source: str
    url: str | None = None
    license: str | None = None
    stated: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def non_commercial(self) -> bool:
        """Whether the licence's name says that it forbids commercial use."""
        name = (self.license or "").lower()
        return name in _RESEARCH or _NON_COMMERCIAL.search(name) is not None

    def notice(self) -> str:
        """One line for the user."""
        if self.license is None:
            return f"{self.source}: no licence is stated; look it up where the weights are published, and give --license"
        limit = ", for non-commercial use only" if self.non_commercial else ""
        return f"{self.source}: licence {self.license}{limit} (as {self.stated} says)"


def read_origin(folder: str | Path) -> Origin:
    """Of `origin.json`, where there is one, or else of README.md. Raises UserError for a damaged `origin.json`."""
    folder = Path(folder)
    file = folder / FILE
    if not file.is_file():
        license_name = readme_license(folder)
        stated = None if license_name is None else "README.md"
        return Origin(folder.resolve().name, license=license_name, stated=stated)
    try:
        if file.stat().st_size > LARGEST:
            raise ValueError("it is larger than 1 MiB")
        values = json.loads(file.read_text())
        names = {each.name for each in dataclasses.fields(Origin)}
        return Origin(**{name: value for name, value in values.items() if name in names})
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}; remove it or import anew") from None


def write_origin(folder: Path, origin: Origin) -> None:
    """Writes `origin.json`."""
    values = dataclasses.asdict(origin) | {"non_commercial": origin.non_commercial}
    (folder / FILE).write_text(json.dumps(values, indent=1) + "\n")


def readme_license(folder: Path) -> str | None:
    """The licence in the front matter of the folder's README.md: `license`, or `license_name` where that is "other"."""
    file = folder / "README.md"
    if not file.is_file() or file.stat().st_size > LARGEST:
        return None
    lines = file.read_text(errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return None
    found: dict[str, str] = {}
    for line in lines[1:]:
        if line.strip() == "---":
            break
        key, colon, value = line.partition(":")
        if colon and key in ("license", "license_name"):
            found[key] = value.strip().strip("\"'")
    name = found.get("license")
    return found.get("license_name", name) if name in (None, "other") else name


def sha256(file: Path) -> str:
    """Of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
