"""Volume rendering in numpy, float64, sample by sample: the references of the renderer's tests."""

import numpy as np


def weights(thickness):
    """Weights [s] of one ray."""
    light, found = 1.0, []
    for tau in thickness:
        alpha = 1.0 - np.exp(-tau)
        found.append(light * alpha)
        light *= 1.0 - alpha
    return np.array(found)


def pixel(density, colour, edges, background):
    """Colour, opacity and depth of one ray."""
    w = weights(density * np.diff(edges))
    middle = (edges[1:] + edges[:-1]) / 2
    opacity = w.sum()
    depth = (w * middle).sum() / opacity if opacity > 1e-6 else 0.0
    return (w[:, None] * colour).sum(0) + (1 - opacity) * background, opacity, depth


def distortion(edges, w):
    """mip-NeRF 360, eq. 15, over all pairs."""
    middle = (edges[1:] + edges[:-1]) / 2
    pairs = sum(
        w[i] * w[j] * abs(middle[i] - middle[j]) for i in range(len(w)) for j in range(len(w))
    )
    return pairs + (w**2 * np.diff(edges)).sum() / 3


def interlevel(edges, w, proposal_edges, proposal_w):
    """mip-NeRF 360, eq. 12 and 13."""
    total = 0.0
    for i in range(len(w)):
        bound = sum(
            proposal_w[j]
            for j in range(len(proposal_w))
            if edges[i] < proposal_edges[j + 1] and edges[i + 1] > proposal_edges[j]
        )
        total += max(0.0, w[i] - bound) ** 2 / (w[i] + 1e-7)
    return total
