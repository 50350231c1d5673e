"""Clips in a notebook."""

import base64
import io
import re
import sys
import types

import av
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.core.errors import UserError
from jaxvid.systems.show import show


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, through a stand-in for IPython."""
    pages = []
    module = types.ModuleType("IPython.display")
    module.HTML, module.display = str, pages.append
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return pages


def test_clips_are_playable_and_captions_are_text(shown):
    values = jnp.linspace(-1.0, 1.0, 2 * 5).reshape(2, 5, 1, 1, 1)
    show(jnp.broadcast_to(values, (2, 5, 8, 8, 3)), ["dark & <b>", "bright"], side=32)
    (page,) = shown
    assert "dark &amp; &lt;b&gt;" in page
    assert "bright" in page
    clips = re.findall(r'src="data:video/mp4;base64,([^"]+)"', page)
    assert len(clips) == 2
    for index, clip in enumerate(clips):
        with av.open(io.BytesIO(base64.b64decode(clip))) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == 5
        assert frames[0].shape == (32, 32, 3)
        expected = (np.asarray(values)[index, :, 0, 0, 0] + 1) * 127.5
        np.testing.assert_allclose([frame.mean() for frame in frames], expected, atol=4)


def test_what_cannot_be_shown(shown, monkeypatch):
    clips = jnp.zeros((2, 1, 8, 8, 3))
    with pytest.raises(UserError, match="1 captions for 2 clips"):
        show(clips, ["one"])
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with pytest.raises(UserError, match="show needs IPython"):
        show(clips)
