"""LPIPS from public weights: torchvision's AlexNet or VGG16 and the heads of the package `lpips`, as safetensors.

Names are the publishers': `features.0.weight` and `features.0.bias` of the classifier's convolutions (its dense layers,
`classifier.*`, are not read), `lin0.model.1.weight` to `lin4.model.1.weight` of the heads; in one file or in several.
Both are published as pickles; README's section "A scene" has the lines that convert them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxvid.core.errors import UserError
from jaxvid.core.paths import unflatten
from jaxvid.models.lpips import LAYERS, LPIPS, Network
from jaxvid.weights.tensors import Tensors, files_of


def load_lpips(source: str | Path | Sequence[str | Path], network: Network | None = None) -> LPIPS:
    """The network with the weights of a folder's safetensors files, of one file, or of several.

    network: None takes the one whose first kernel is stored. Raises UserError naming the file and the tensor.
    """
    kind = f"LPIPS on {network}" if network else "LPIPS"
    tensors = Tensors(files_of(source, kind), kind, rename=_without_classifier)
    chosen = network or _network_of(tensors.shapes)
    values: dict[str, np.ndarray] = {}
    inputs, place, heads = 3, 0, 0
    for index, layer in enumerate(LAYERS[chosen]):
        place += layer.pool > 0  # torchvision numbers the pooling and the ReLUs too
        shape = (layer.width, inputs, layer.size, layer.size)
        kernel = tensors.take(f"features.{place}.weight", shape)
        values[f"convolutions/{index}/kernel"] = kernel.transpose(2, 3, 1, 0)
        values[f"convolutions/{index}/bias"] = tensors.take(f"features.{place}.bias", shape[:1])
        if layer.tap:
            values[f"heads/{heads}"] = _head(tensors, f"lin{heads}.model.1.weight", layer.width)
            heads += 1
        inputs, place = layer.width, place + 2
    tensors.end()
    abstract = jax.eval_shape(lambda key: LPIPS(chosen, key), jax.random.key(0))
    return unflatten(abstract, {path: jnp.asarray(value) for path, value in values.items()})


def _without_classifier(name: str) -> str | None:
    return None if name.startswith("classifier.") else name


def _network_of(shapes: Mapping[str, tuple[int, ...]]) -> Network:
    """VGG16's first kernels are smaller than AlexNet's."""
    return "vgg" if shapes.get("features.0.weight", ())[2:] == (3, 3) else "alex"


def _head(tensors: Tensors, name: str, width: int) -> np.ndarray:
    head = tensors.take(name, (1, width, 1, 1)).reshape(width)
    if (head < 0).any():
        raise UserError(f"{name} has negative numbers; give LPIPS's heads, which have none")
    return head
