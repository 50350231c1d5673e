"""LPIPS: what its authors' PyTorch package says of the same weights, its properties, and the loading of public weights.

The package's numbers are stored in lpips_truth.json, which `python tests/lpips_truth.py` writes anew.
"""

import json

import jax
import jax.numpy as jnp
import lpips_truth
import naive
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxvid.core.errors import UserError
from jaxvid.core.paths import flatten
from jaxvid.models.lpips import LAYERS, LPIPS, smallest_side, unit
from jaxvid.weights.lpips import load_lpips

NETWORKS = ("alex", "vgg")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder a network with the random weights, backbone and heads apart."""
    root = tmp_path_factory.mktemp("lpips")
    for network in NETWORKS:
        (root / network).mkdir()
        backbone, heads = lpips_truth.tensors(network)
        backbone["classifier.6.bias"] = np.ones(1000, np.float32)
        save_file(backbone, root / network / "backbone.safetensors")
        save_file(heads, root / network / "heads.safetensors")
    return root


@pytest.fixture(scope="module")
def modules(stored):
    return {network: load_lpips(stored / network) for network in NETWORKS}


def only_head(module, number):
    """The module with all heads but one set to 0."""
    values = flatten(module)
    heads = {path: leaf for path, leaf in values.items() if path.startswith("heads/")}
    assert len(heads) == 5
    zeros = {path: 0 * leaf for path, leaf in heads.items() if path != f"heads/{number}"}
    return naive.with_values(module, values | zeros)


@naive.compiled
def gradient(module, images, others):
    return jax.grad(lambda x: jnp.sum(module(x, others)))(images)


def check_against(truth, module, network):
    first, second, direction = lpips_truth.images(network)
    found = naive.call(module, first, second)
    np.testing.assert_allclose(found, truth["distance"], rtol=2e-5)
    for number, share in enumerate(truth["taps"]):
        of_tap = naive.call(only_head(module, number), first, second)
        np.testing.assert_allclose(of_tap, share, rtol=2e-5, err_msg=f"tap {number}")
    slopes = np.asarray(gradient(module, first, second), np.float64)
    length = np.sqrt((slopes**2).sum((1, 2, 3)))
    np.testing.assert_allclose(length, truth["length"], rtol=1e-4)
    error = (slopes * direction).sum((1, 2, 3)) - truth["slope"]
    assert (np.abs(error) < 1e-4 * length * np.sqrt((direction**2).sum((1, 2, 3)))).all()


@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_the_published_distance(modules, network):
    truth = json.loads(lpips_truth.FILE.read_text())[network]
    check_against(truth, modules[network], network)


@pytest.mark.parity
@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_the_published_distance_live(modules, network):
    pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[parity]"')
    pytest.importorskip("lpips", reason='needs lpips: pip install -e ".[parity]"')
    check_against(lpips_truth.published(network), modules[network], network)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_distance_is_symmetric_and_zero_for_equal_images(modules, network):
    module = modules[network]
    first, second, _ = lpips_truth.images(network)
    there, back = naive.call(module, first, second), naive.call(module, second, first)
    np.testing.assert_array_equal(there, back)
    assert (np.asarray(there) > 0).all()
    np.testing.assert_array_equal(naive.call(module, first, first), 0)
    np.testing.assert_array_equal(gradient(module, first, first), 0)


def test_the_gradient_is_finite_where_no_feature_is_active(modules):
    """A length of 0 has no derivative; here every feature vector of the second tap has it."""
    module = modules["alex"]
    silent = {"convolutions/1/bias": jnp.full(192, -1e3)}
    module = naive.with_values(module, flatten(module) | silent)
    first, second, _ = lpips_truth.images("alex")
    assert not np.asarray(module.features(jnp.asarray(first))[1]).any()
    for others in (first, second):
        slopes = np.asarray(gradient(module, first, others))
        assert np.isfinite(slopes).all()
    assert slopes.any(), "the first tap still tells the images apart"


@pytest.mark.parametrize("exponent", range(-30, 18, 4))
def test_unit_features_over_many_decades(exponent):
    x = np.float32(10.0**exponent) * np.array([3, 0, 4], np.float32).reshape(1, 1, 1, 3)
    slopes = jax.grad(lambda x: jnp.sum(unit(x)[..., 0]))(jnp.asarray(x))
    assert np.isfinite(slopes).all()
    if exponent > -16:  # the squares of smaller numbers are none
        wide = x.astype(np.float64)
        expected = wide / (np.sqrt((wide**2).sum()) + 1e-10)
        np.testing.assert_allclose(unit(jnp.asarray(x)), expected, rtol=1e-5)


@pytest.mark.parametrize(("network", "side"), [("alex", 31), ("vgg", 16)])
def test_the_smallest_images(network, side):
    assert smallest_side(network) == side
    module = jax.eval_shape(lambda key: LPIPS(network, key), jax.random.key(0))

    def shapes(height, width):
        images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
        return [y.shape for y in jax.eval_shape(lambda m, x: m.features(x), module, images)]

    assert shapes(side, side)[-1] == (1, 1, 1, LAYERS[network][-1].width)
    for size in ((side - 1, side), (side, side - 1)):
        with pytest.raises(UserError, match=f"too small for LPIPS on {network}; give {side}"):
            shapes(*size)


# --- public weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_every_published_number_has_its_place(modules, network):
    values = flatten(modules[network])
    backbone, heads = lpips_truth.tensors(network)
    assert len(values) == len(backbone) + len(heads)
    assert modules[network].network == network
    for index, place in enumerate(lpips_truth.CONVOLUTIONS[network]):
        kernel = backbone[f"features.{place}.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(values[f"convolutions/{index}/kernel"], kernel)
        bias = backbone[f"features.{place}.bias"]
        np.testing.assert_array_equal(values[f"convolutions/{index}/bias"], bias)
    for number in range(5):
        head = heads[f"lin{number}.model.1.weight"][0, :, 0, 0]
        np.testing.assert_array_equal(values[f"heads/{number}"], head)


def test_weights_in_one_file_in_two_and_in_half_precision(modules, stored, tmp_path):
    backbone, heads = lpips_truth.tensors("alex")
    expected = flatten(modules["alex"])
    save_file({**backbone, **heads}, tmp_path / "all.safetensors")
    two = [stored / "alex" / "heads.safetensors", str(stored / "alex" / "backbone.safetensors")]
    for source in (tmp_path, tmp_path / "all.safetensors", str(tmp_path), two):
        for path, leaf in flatten(load_lpips(source, "alex")).items():
            np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
    save_file(
        {name: tensor.astype(jnp.bfloat16) for name, tensor in (backbone | heads).items()},
        tmp_path / "all.safetensors",
    )
    for path, leaf in flatten(load_lpips(tmp_path)).items():
        assert leaf.dtype == jnp.float32
        rounded = expected[path].astype(jnp.bfloat16).astype(jnp.float32)
        np.testing.assert_array_equal(leaf, rounded, err_msg=path)


KERNEL, HEAD = "features.8.weight", "lin2.model.1.weight"


def spoiled(name, change):
    return lambda tensors: {**tensors, name: change(tensors[name])}


def first_set_to(value):
    def change(tensor):
        tensor = tensor.copy()
        tensor.flat[0] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: {n: v for n, v in t.items() if n != KERNEL}, f"no tensor {KERNEL}"),
        (lambda t: {n: v for n, v in t.items() if n != HEAD}, f"no tensor {HEAD}"),
        (lambda t: {**t, "features.12.weight": t[KERNEL]}, "features.12.weight is not of LPIPS"),
        (lambda t: {**t, "lin5.model.1.weight": t[HEAD]}, "lin5.model.1.weight is not of LPIPS"),
        (spoiled(KERNEL, lambda v: v[:5]), rf"{KERNEL} has shape \(5, 384, 3, 3\)"),
        (spoiled(HEAD, lambda v: v[0]), rf"{HEAD} has shape \(384, 1, 1\)"),
        (spoiled(KERNEL, first_set_to(np.nan)), f"{KERNEL} holds numbers that are not finite"),
        (spoiled(KERNEL, lambda v: 1e42 * v.astype("f8")), f"{KERNEL} holds numbers that are not"),
        (spoiled(KERNEL, lambda v: v.astype("i4")), f"{KERNEL} is of type I32"),
        (spoiled(HEAD, first_set_to(-0.1)), f"{HEAD} has negative numbers"),
    ],
    ids=[
        *("no kernel", "no head", "one layer more", "one head more", "kernel's shape"),
        *("head's shape", "nan", "too large", "integers", "negative head"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(tmp_path, spoil, words):
    backbone, heads = lpips_truth.tensors("alex")
    save_file(spoil(backbone | heads), tmp_path / "all.safetensors")
    refuses(tmp_path, words)


def refuses(source, words, network=None):
    with pytest.raises(UserError, match=words) as caught:
        load_lpips(source, network)
    assert "\n" not in str(caught.value)


def test_another_networks_weights_are_refused(stored):
    refuses(stored / "vgg", r"features.0.weight has shape .*LPIPS on alex wants", "alex")
    both = [stored / network / "backbone.safetensors" for network in NETWORKS]
    refuses(both, r"features.0.\w+ is in .*alex.* and in .*vgg")


def test_files_that_are_none_are_one_line(stored, tmp_path):
    refuses(tmp_path / "nowhere", "nowhere does not exist")
    refuses(stored / "alex" / "heads.safetensors", "no tensor features.0.weight")
    refuses(tmp_path, "holds no .safetensors file")
    (tmp_path / "alex.pth").write_bytes(b"PK")
    for source in (tmp_path, tmp_path / "alex.pth"):
        refuses(source, "alex.pth is a pickle.* convert it")
    whole = (stored / "alex" / "heads.safetensors").read_bytes()
    for keep in (0, 4, 100, len(whole) - 64):
        (tmp_path / "cut.safetensors").write_bytes(whole[:keep])
        refuses(tmp_path / "cut.safetensors", "cut.safetensors cannot be read")
