"""Small scenes to be made wrong, and what holds for every refusal of one."""

from typing import Any

import pytest
from loaded import one_line
from writers import make_truth

from jaxedit.scene.load import SceneConfig, load_scene
from jaxvid.core.errors import UserError

SMALL: dict[str, Any] = {"count": 4, "width": 8, "height": 8}
SQUARE = make_truth(square=True, **SMALL)
PLAIN, BENT = make_truth(**SMALL), make_truth("opencv", keep=[0, 1, 4, 5], **SMALL)


def refused(root, match, **fields):
    with pytest.raises(UserError, match=match) as caught:
        load_scene(SceneConfig(path=str(root), **fields))
    one_line(caught.value)
