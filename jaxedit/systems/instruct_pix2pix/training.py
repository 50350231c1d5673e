r"""Two phases: a text encoder that learns to read, and a U-Net that learns to edit.

Reading: for each attribute a that an instruction may state (`words.ATTRIBUTES`), a learned query looks at the encoder's tokens, and
a dense layer names the value; the loss is the sum of cross entropies. A U-Net can attend to what such a query finds.

Editing: with z = alpha x + sigma eps the latents of the picture after the edit, noised, and c those before it,

    loss = min(max(SNR, low), high) |f(z, t, c, text) - x|^2

where text and c are dropped for some examples (Brooks et al. 2023, section 3.2.1), from one uniform number r an example: the text
where r < 2u, c where u <= r < 3u.
"""

import math
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxedit.systems.instruct_pix2pix.config import PixToPixConfig
from jaxedit.systems.instruct_pix2pix.pairs import PairBatches
from jaxedit.systems.instruct_pix2pix.words import ATTRIBUTES, toy_tokenizer
from jaxvid.core.mesh import make_mesh, process_shard
from jaxvid.core.paths import flatten, unflatten
from jaxvid.core.rng import named
from jaxvid.diffusion.process import q_sample
from jaxvid.diffusion.types import Level
from jaxvid.models.clip import ClipText
from jaxvid.models.conditional_unet import ConditionalUNet
from jaxvid.models.folding import PixelFolding
from jaxvid.nn.linear import Linear
from jaxvid.pipelines.denoise import network_denoise
from jaxvid.pipelines.noise import Bound, PublishedNoise
from jaxvid.train.optimizer import make_optimizer
from jaxvid.train.phase import Phase, Report
from jaxvid.train.state import Params, State, carry, make_state, weights
from jaxvid.train.step import Sums, make_step


class Readout(nnx.Module):
    """For each attribute a query over tokens, and its values' logits."""

    def __init__(self, width: int, key: Key[Array, ""]):
        count = len(ATTRIBUTES)
        self.query = nnx.Param(width**-0.5 * jax.random.normal(named(key, "query"), (count, width)))
        self.heads = nnx.List(
            [
                Linear(width, 1 + len(values), named(key, "heads", name))
                for name, values in ATTRIBUTES.items()
            ]
        )

    def __call__(self, tokens: Float[Array, "b n d"]) -> list[Float[Array, "b k"]]:
        scores = jnp.einsum("ad,bnd->ban", self.query[...], tokens)
        found = jnp.einsum("ban,bnd->bad", jax.nn.softmax(scores, axis=-1), tokens)
        return [head(found[:, i]) for i, head in enumerate(self.heads)]


class Networks(nnx.Module):
    """All that is trained."""

    def __init__(self, config: PixToPixConfig, key: Key[Array, ""]):
        self.text = ClipText(config.text, named(key, "text"))
        self.readout = Readout(config.text.transformer.width, named(key, "readout"))
        self.unet = ConditionalUNet(config.unet, named(key, "unet"))


@lru_cache(maxsize=4)
def abstract_networks(config: PixToPixConfig) -> Networks:
    """Shapes without values."""
    return jax.eval_shape(partial(Networks, config), jax.random.key(0))


def noise_of(config: PixToPixConfig) -> PublishedNoise:
    """What the U-Net is trained with and how it is sampled: it predicts x, which is kept within the pixels' range."""
    return PublishedNoise(config.table, "x", "leading", 1, "first", Bound(1.0))


def reading_loss(
    config: PixToPixConfig, params: Params, batch: Mapping[str, Any], keys: Any
) -> tuple[Float[Array, "b"], Sums]:
    """Cross entropies summed over attributes; "read" is the share of instructions of which every attribute is right."""
    networks = unflatten(abstract_networks(config), params)
    logits = networks.readout(networks.text(batch["tokens"]).tokens)
    total, right = jnp.zeros(len(keys)), jnp.ones(len(keys), bool)
    for i, each in enumerate(logits):
        truth = batch["said"][:, i]
        known = jax.nn.log_softmax(each)
        total = total - jnp.take_along_axis(known, truth[:, None], axis=1)[:, 0]
        right = right & (jnp.argmax(each, axis=1) == truth)
    return total, {"read": (jnp.sum(right.astype(jnp.float32)), jnp.float32(len(keys)))}


def empty_tokens() -> Int[np.ndarray, "1 n"]:
    """The tokens of no text."""
    return toy_tokenizer().encode([""]).tokens


def editing_loss(
    config: PixToPixConfig, params: Params, batch: Mapping[str, Any], keys: Key[Array, "b"]
) -> tuple[Float[Array, "b"], Sums]:
    """The module's loss of each pair; "x_error" is the squared error without weight, by thirds of the noise levels."""
    networks = unflatten(abstract_networks(config), params)
    folding, noise = PixelFolding(config.folding, jax.random.key(0)), noise_of(config)

    def latents(pixels: Array) -> Array:
        return folding.encode(pixels.astype(jnp.float32)[:, None] / 127.5 - 1.0)

    def drawn(key: Key[Array, ""]) -> tuple[Array, Array, Array]:
        shape = (1, *(config.size // config.folding.side,) * 2, config.folding.latents)
        return (
            jax.random.randint(named(key, "level"), (), 0, config.table.entries, jnp.int32),
            jax.random.normal(named(key, "noise"), shape),
            jax.random.uniform(named(key, "drop")),
        )

    index, eps, r = jax.vmap(drawn)(keys)
    u = config.drop
    no_text, no_image = r < 2 * u, (r >= u) & (r < 3 * u)
    tokens = jnp.where(no_text[:, None], empty_tokens(), batch["tokens"])
    context = jax.lax.stop_gradient(networks.text(tokens).tokens)
    image = jnp.where(no_image[:, None, None, None, None], 0.0, latents(batch["before"]))
    x = latents(batch["after"])
    logsnr = jnp.asarray(config.table.logsnr_table)[index]
    z = q_sample(x, eps, logsnr)
    denoise = network_denoise(noise, networks.unet)
    prediction = denoise(z, Level(logsnr), {"context": context, "image": image})
    error = jnp.mean((prediction.x - x) ** 2, axis=(1, 2, 3, 4))
    low, high = (math.log(bound) for bound in config.snr_range)
    sums: Sums = {}
    for i, name in enumerate(("little", "middle", "much")):
        within = (index * 3 // config.table.entries == i).astype(jnp.float32)
        sums[f"x_error_{name}_noise"] = (jnp.sum(within * error), jnp.sum(within))
    return jnp.exp(jnp.clip(logsnr, low, high)) * error, sums


def phases_of(config: PixToPixConfig, report: Report | None = None) -> list[Phase]:
    """Reading, then editing."""
    shard = process_shard(make_mesh(config.mesh))
    reading, editing = config.reading, config.editing

    def begin(
        teaching: Any, prefixes: tuple[str, ...], previous: State | None, key: Key[Array, ""]
    ) -> State:
        fresh = flatten(Networks(config, key))
        params = carry(None if previous is None else weights(previous), fresh)
        return make_state(
            params,
            make_optimizer(teaching.optimizer, teaching.steps),
            trainable=lambda path: path.startswith(prefixes),
            ema=teaching.ema is not None,
        )

    def phase(
        name: str, teaching: Any, prefixes: tuple[str, ...], loss: Any, report: Report | None
    ) -> Phase:
        def batches(state: Any) -> PairBatches:
            return PairBatches(
                config,
                teaching.batch,
                seed=config.loop.seed,
                pictures=name == "editing",
                index=shard[0],
                count=shard[1],
                state=state,
            )

        step = make_step(
            partial(loss, config),
            make_optimizer(teaching.optimizer, teaching.steps),
            ema_decay=teaching.ema,
        )
        return Phase(
            name, teaching.steps, partial(begin, teaching, prefixes), step, batches, report
        )

    return [
        phase("reading", reading, ("text/", "readout/"), reading_loss, None),
        phase("editing", editing, ("unet/",), editing_loss, report),
    ]
