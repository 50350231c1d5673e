"""Videos in a notebook."""

import base64
import html
from collections.abc import Sequence

from jaxtyping import Array, Float

from jaxvid.core.errors import UserError
from jaxvid.data.writing import encode_video, enlarge
from jaxvid.systems.vdm.report import FPS, to_uint8


def show(
    videos: Float[Array, "b t h w c"], captions: Sequence[str] = (), *, side: int = 160
) -> None:
    """Plays clips in [-1, 1] side by side, each with its caption below; `side` is the shorter side in pixels, at least.

    Needs IPython, which every notebook has, and no program besides: the mp4s are written into the page.
    Raises UserError without IPython, or when there are captions but not one a clip.
    """
    try:
        from IPython.display import HTML, display
    except ImportError:
        raise UserError('show needs IPython: pip install "jaxvid[notebook]"') from None
    if captions and len(captions) != len(videos):
        raise UserError(f"{len(captions)} captions for {len(videos)} clips; give one each, or none")
    figures = []
    for clip, caption in zip(to_uint8(videos), captions or [""] * len(videos), strict=True):
        data = base64.b64encode(encode_video(enlarge(clip, side), FPS)).decode()
        figures.append(
            '<figure style="display:inline-block;margin:4px;vertical-align:top">'
            f'<video autoplay loop muted controls src="data:video/mp4;base64,{data}"></video>'
            f'<figcaption style="max-width:{side * 2}px">{html.escape(caption)}</figcaption></figure>'
        )
    display(HTML("".join(figures)))
