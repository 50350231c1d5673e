"""BERT's public weights into a `TextEncoder`: a local folder in the transformers layout.

Reads `model.safetensors` (names with or without the leading "bert."; a norm's parameters are weight and bias, or gamma and
beta as in the first published checkpoints). Every parameter of the encoder must be there with its shape, and no further
layer; the pooler and the pre-training heads are not read. The token type is 0 throughout, so its vector becomes `kind`.
"""

import re
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxvid.core.errors import UserError
from jaxvid.core.paths import flatten
from jaxvid.models.text import TextConfig, abstract_encoder

# Our path within a layer: theirs, and whether the matrix is transposed.
LAYER = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "expand": "intermediate.dense",
    "contract": "output.dense",
    "norm2": "output.LayerNorm",
}
LEAF = {"kernel": "weight", "bias": "bias", "scale": "weight"}


def load_bert(folder: str, config: TextConfig) -> dict[str, jnp.ndarray]:
    """Parameters of `TextEncoder(config)` by path, float32. Raises UserError naming the file and the tensor."""
    file = Path(folder) / "model.safetensors"
    if not file.is_file():
        raise UserError(
            f"text_weights {file} does not exist; give a folder with BERT's model.safetensors"
        )
    try:
        with safe_open(file, framework="np") as stored:
            names = {_canonical(name): name for name in stored.keys()}  # noqa: SIM118

            def read(name: str) -> np.ndarray:
                if name not in names:
                    raise UserError(f"{file} lacks the tensor {name}; is it BERT's?")
                tensor = stored.get_tensor(names[name]).astype(np.float32)
                if not np.isfinite(tensor).all():
                    raise UserError(
                        f"{file}: {name} holds numbers that are not finite; fetch it again"
                    )
                return tensor

            found = [re.match(r"encoder\.layer\.(\d+)\.", name) for name in names]
            depth = max((int(match[1]) + 1 for match in found if match), default=0)
            if depth > config.layers:
                raise UserError(
                    f"{file} has {depth} layers but text.layers is {config.layers}; set it"
                )
            return _convert(read, config, file)
    except SafetensorError as error:
        raise UserError(f"{file} is damaged: {error}; fetch it again") from None


def _canonical(name: str) -> str:
    name = name.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def _convert(
    read: Callable[[str], np.ndarray], config: TextConfig, file: Path
) -> dict[str, jnp.ndarray]:
    abstract = flatten(abstract_encoder(config))

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        tensor = read(name)
        if tensor.shape != shape:
            raise UserError(
                f"{file}: {name} has shape {tensor.shape}, the config wants {shape}; change text"
            )
        return tensor

    tree = {
        path: take(name, abstract[path].shape)
        for path, name in {
            "words/table": "embeddings.word_embeddings.weight",
            "places/table": "embeddings.position_embeddings.weight",
            "norm/scale": "embeddings.LayerNorm.weight",
            "norm/bias": "embeddings.LayerNorm.bias",
        }.items()
    }
    tree["kind"] = take("embeddings.token_type_embeddings.weight", (2, config.width))[0]
    for path, leaf in abstract.items():
        if not path.startswith("layers/"):
            continue
        part, _, kind = path.removeprefix("layers/").rpartition("/")
        shape = leaf.shape[:0:-1] if kind == "kernel" else leaf.shape[1:]  # theirs is [out, in]
        layers = [
            take(f"encoder.layer.{i}.{LAYER[part]}.{LEAF[kind]}", shape)
            for i in range(config.layers)
        ]
        tree[path] = np.stack([layer.T if kind == "kernel" else layer for layer in layers])
    return {path: jnp.asarray(tree[path]) for path in abstract}
