"""Cameras in a ring around a target, for tests of paths."""

import numpy as np

from jaxedit.scene.poses import look_at

UP = np.array([0.0, 0.0, 1.0])


def ring(count=8, height=1.0, radius=3.0, target=(0.2, -0.1, 0.3)):
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    target = np.array(target)
    position = target + np.stack(
        [radius * np.cos(angle), radius * np.sin(angle), height + 0 * angle], -1
    )
    return look_at(position, target, UP)
