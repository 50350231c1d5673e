"""BERT's public weights into a `TextEncoder`: a local folder in the transformers layout.

Reads `model.safetensors` (names with or without the leading "bert."). Every parameter of the encoder must be there with
its shape; the pooler and the pre-training heads are not read. The token type is 0 throughout, so its vector becomes `kind`.
"""

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
            names = {name.removeprefix("bert."): name for name in stored.keys()}  # noqa: SIM118

            def read(name: str) -> np.ndarray:
                if name not in names:
                    raise UserError(f"{file} lacks the tensor {name}; is it BERT's?")
                return stored.get_tensor(names[name]).astype(np.float32)

            return _convert(read, config, file)
    except SafetensorError as error:
        raise UserError(f"{file} is damaged: {error}; fetch it again") from None


def _convert(read, config: TextConfig, file: Path) -> dict[str, jnp.ndarray]:
    tree = {
        "words/table": read("embeddings.word_embeddings.weight"),
        "places/table": read("embeddings.position_embeddings.weight"),
        "kind": read("embeddings.token_type_embeddings.weight")[0],
        "norm/scale": read("embeddings.LayerNorm.weight"),
        "norm/bias": read("embeddings.LayerNorm.bias"),
    }
    abstract = flatten(abstract_encoder(config))
    for path in abstract:
        prefix, _, rest = path.partition("layers/")
        if prefix or not rest:
            continue
        part, _, leaf = rest.rpartition("/")
        layers = [
            read(f"encoder.layer.{i}.{LAYER[part]}.{LEAF[leaf]}") for i in range(config.layers)
        ]
        tree[path] = np.stack([layer.T if leaf == "kernel" else layer for layer in layers])
    for path, leaf in abstract.items():
        if tree[path].shape != leaf.shape:
            raise UserError(
                f"{file}: {path} has shape {tree[path].shape}, the config wants {leaf.shape}"
            )
        if not np.isfinite(tree[path]).all():
            raise UserError(f"{file}: {path} holds numbers that are not finite; fetch it again")
    return {path: jnp.asarray(tree[path]) for path in abstract}
