"""PSNR, SSIM, and what of the views they are of."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from small_fits import toy

from jaxedit.evaluate import psnr, ssim
from jaxedit.systems.reconstruct.report import score, truth_of


def test_psnr_of_known_errors():
    truth = np.zeros((4, 4, 3))
    np.testing.assert_allclose(psnr(truth + 0.1, truth), 20.0)
    mask = np.zeros((4, 4), bool)
    mask[0] = True
    half = truth.copy()
    half[0] = 0.01
    np.testing.assert_allclose(psnr(half, truth, mask), 40.0)
    assert psnr(truth, truth) == np.inf
    assert np.isnan(psnr(truth, truth, np.zeros((4, 4), bool)))


def test_ssim_is_its_definition():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(size=(2, 16, 14, 3))
    offset = np.arange(11) - 5
    window = np.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for c in range(3):
        for i in range(6):
            for j in range(4):
                a, b = x[i : i + 11, j : j + 11, c], y[i : i + 11, j : j + 11, c]
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
                cov = (window * (a - ma) * (b - mb)).sum()
                values.append(
                    (2 * ma * mb + 1e-4)
                    * (2 * cov + 9e-4)
                    / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
                )
    found = ssim(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(found, np.mean(values), rtol=1e-4)
    np.testing.assert_allclose(
        ssim(jnp.asarray(x, jnp.float32), jnp.asarray(x, jnp.float32)), 1.0, rtol=1e-5
    )


def test_masks_and_alpha_say_what_is_scored():
    """Errors of 0.1 in what counts, of 1 elsewhere; a view without foreground is left out of the foreground's mean."""
    truth = np.zeros((3, 24, 24, 4), np.uint8)
    truth[:2, 4:20, 4:20, 3] = 255  # black on a transparent ground; the third view has nothing
    masks = np.zeros((3, 24, 24), bool)
    masks[:, 2:18, 2:18] = True
    views = replace(toy().views["test"], images=truth, masks=masks, names=("a", "b", "c"))

    def rendering(elsewhere):
        def render(views, index):
            image = truth_of(views, index, "white") * 0.8 + 0.1
            image[~views.masks[index]] = elsewhere
            return image

        return render

    render = rendering(0.5)
    scores = score(render, views, "white", range(3))
    np.testing.assert_allclose(scores.psnr, 20.0, rtol=1e-5)
    np.testing.assert_allclose(scores.foreground, 20.0, rtol=1e-5)
    assert scores.ssim == score(rendering(0.9), views, "white", range(3)).ssim
    bare = replace(views, images=np.zeros_like(truth))
    assert np.isnan(score(render, bare, "white", range(3)).foreground)


def test_ssim_of_a_mask_is_the_mean_of_whole_windows():
    x, y = np.random.default_rng(1).uniform(size=(2, 16, 14, 3)).astype(np.float32)
    mask = np.zeros((16, 14), bool)
    mask[2:13, 1:12] = True
    found = ssim(jnp.asarray(x), jnp.asarray(y), jnp.asarray(mask))
    expected = ssim(jnp.asarray(x[2:13, 1:12]), jnp.asarray(y[2:13, 1:12]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.isnan(ssim(jnp.asarray(x), jnp.asarray(y), jnp.zeros((16, 14), bool)))


def test_a_background_of_black_is_scored_over_black():
    views = toy().views["test"]
    over = [truth_of(views, 0, name) for name in ("black", "white", "random")]
    clear = views.images[0][..., 3] == 0
    assert clear.any()
    assert (over[0][clear] == 0).all()
    assert (over[1][clear] == 1).all()
    np.testing.assert_array_equal(over[1], over[2])
