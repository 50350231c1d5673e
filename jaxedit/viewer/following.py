"""What a viewer reads in the run's directory while it is fitted: new checkpoints and the last scores."""

from pathlib import Path

from jaxedit.systems.reconstruct.stored import load_fitted
from jaxedit.viewer.session import Session, step_of
from jaxvid.core.errors import UserError
from jaxvid.core.run import RunDirectory


def newest_step(run: Path) -> int | None:
    """The step of the newest finished checkpoint; None if there is none."""
    folder = run / "checkpoints" / "steps"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdecimal()), default=None)


class Live:
    """Gives a session the newest good checkpoint of its run whenever one appears."""

    def __init__(self, session: Session):
        self._session = session
        self._seen = step_of(session.fitted)

    def look(self) -> bool:
        """Looks once; returns whether the session now draws another state."""
        newest = newest_step(self._session.run)
        if newest is None or newest == self._seen:
            return False
        try:
            fitted = load_fitted(self._session.run)
        except UserError:  # the run may be removing what was being read; the next look tells
            return False
        self._seen = newest
        if step_of(fitted) == step_of(self._session.fitted):
            return False
        self._session.change(fitted=fitted)
        return True


def progress_text(run: Path, step: int, total: int) -> str:
    """What a viewer says of the run: the step it shows, and the last PSNRs of metrics.jsonl, as Markdown."""
    found = [f"shown: step {step} of {total}"]
    last: dict[str, str] = {}
    for line in RunDirectory(run, None).metrics():
        for name, value in line.items():
            if name.split("/")[-1] == "psnr" and value is not None:
                split = name.split("/")[0] if "/" in name else "training"
                last[split] = f"{split}: PSNR {value:.2f} dB at step {line['step']}"
    return "\n\n".join([*found, *last.values()])
