"""Videos in a notebook."""

from collections.abc import Sequence

from jaxtyping import Array, Float

from jaxvid.core.errors import UserError
from jaxvid.systems.vdm.report import FPS, to_uint8


def show(
    videos: Float[Array, "b t h w c"], captions: Sequence[str] = (), *, side: int = 160
) -> None:
    """Plays clips in [-1, 1] side by side. Needs the extra `notebook` (mediapy)."""
    try:
        import mediapy
    except ImportError:
        raise UserError('show needs mediapy: pip install "jaxvid[notebook]"') from None
    titles = list(captions) or [""] * len(videos)
    clips = {
        f"{index} {title}": clip
        for index, (title, clip) in enumerate(zip(titles, to_uint8(videos), strict=True))
    }
    mediapy.show_videos(clips, fps=FPS, height=side, codec="gif")
