"""The text-conditional U-Net of the public diffusion models, of images and of video.

One network on `b t h w c` for Stable Diffusion and what descends from it (InstructPix2Pix, the x4 upscaler), for unCLIP's
decoder and super-resolution models (Karlo), DeepFloyd IF, ModelScope, AnimateDiff and Stable Video Diffusion. What they differ
in is data (`ConditionalUNetConfig`): which attention a level has, how the embedding enters a block, how sides are halved, which
temporal layers stand between the spatial ones. An image is a clip of one frame, and a model without temporal layers treats
frames as independent images.

It is not the U-Net of `jaxvid.models.unet`: that is Video Diffusion Models' own (attention without feed-forward layers, a skip
from every block of the trunk, relative positions, segments), whose layers and parameters nothing public has.

Attributes have the names of the published checkpoints, so that a parameter's path is its name there, up to the rules in
`jaxvid.weights.naming`.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, Num

from jaxvid.core.errors import UserError
from jaxvid.core.rng import named
from jaxvid.models.blocks import TimeEmbedding, activate
from jaxvid.models.conditional_stages import (
    ConditionalUNetConfig,
    Conditions,
    Context,
    Level,
    MotionConfig,
    down_stages,
    middle_stage,
    up_stages,
)
from jaxvid.models.temporal import TemporalTransformer
from jaxvid.models.text_pooling import TextPooling
from jaxvid.nn.conv import SpatialConv
from jaxvid.nn.embedding import sinusoidal
from jaxvid.nn.linear import Embedding, Linear, zeros
from jaxvid.nn.norm import GroupNorm

__all__ = ["ConditionalUNet", "ConditionalUNetConfig", "Level", "MotionConfig", "abstract_unet"]


def label_embedding(
    config: ConditionalUNetConfig, key: Key[Array, ""]
) -> Embedding | TimeEmbedding | None:
    """What turns the label into a part of the embedding; nothing for a vector, or for none."""
    width = config.embedding_width
    if config.label == "table":
        return Embedding(config.labels, width, key)
    if config.label == "number":
        kind = config.block.activation
        return TimeEmbedding(config.levels[0].width, width, key, activation=kind)
    return None


def further_embedding(
    config: ConditionalUNetConfig, key: Key[Array, ""]
) -> TextPooling | TimeEmbedding | None:
    """What turns the tokens, or further numbers, into a part of the embedding."""
    width, tokens = config.embedding_width, config.context_inputs or config.context
    if config.pooled_heads and tokens is not None:
        return TextPooling(tokens, width, config.pooled_heads, key)
    if config.numbers:
        return TimeEmbedding(config.numbers * config.number_width, width, key)
    return None


class ConditionalUNet(nnx.Module):
    """See the module."""

    def __init__(self, config: ConditionalUNetConfig, key: Key[Array, ""]):
        self.config = config
        first, kind = config.levels[0].width, config.block.activation
        self.conv_in = SpatialConv(config.inputs, first, named(key, "conv_in"))
        self.time_embedding = TimeEmbedding(
            first, config.embedding_width, named(key, "time_embedding"), activation=kind
        )
        self.class_embedding = label_embedding(config, named(key, "class_embedding"))
        self.add_embedding = further_embedding(config, named(key, "add_embedding"))
        inputs, inside = config.context_inputs, config.context
        self.encoder_hid_proj = (
            None
            if inputs is None or inside is None
            else Linear(inputs, inside, named(key, "encoder_hid_proj"))
        )
        head = config.levels[0].head_dim
        self.transformer_in = (
            TemporalTransformer(
                first, 8 * head, head, named(key, "transformer_in"), groups=config.block.groups
            )
            if config.temporal == "modelscope"
            else None
        )
        self.down_blocks = nnx.List(down_stages(config, named(key, "down_blocks")))
        self.mid_block = middle_stage(config, named(key, "mid_block"))
        self.up_blocks = nnx.List(up_stages(config, named(key, "up_blocks")))
        self.conv_norm_out = GroupNorm(first, groups=config.block.groups, eps=config.block.eps)
        self.conv_out = SpatialConv(first, config.outputs, named(key, "conv_out"), init=zeros)

    def __call__(
        self,
        z: Float[Array, "b t h w c"],
        time: Num[Array, "b"],
        context: Context | None = None,
        *,
        mask: Bool[Array, "b n"] | None = None,
        label: Int[Array, "b"] | Float[Array, "b"] | Float[Array, "b e"] | None = None,
        numbers: Float[Array, "b k"] | None = None,
        still: Bool[Array, "b t"] | None = None,
    ) -> Float[Array, "b t h w o"]:
        """The network's output for noised frames, in z's dtype.

        time: as the model counts it, such as 0 to 999. mask: tokens of the context that may be seen. label: as
        `config.label` says. numbers: `config.numbers` of them. still: frames that temporal layers of Stable Video Diffusion
        leave as images. Sides that are not multiples of 2 to the number of halvings are cut as on the way down.
        """
        if self.config.context is not None and context is None:
            raise UserError("this U-Net attends to a context; give one")
        embedding = self._embedding(z, time, context, label, numbers)
        if self.encoder_hid_proj is not None and context is not None:
            context = self.encoder_hid_proj(context.astype(z.dtype))
        given = Conditions(embedding, context, mask, still)
        x = self.conv_in(z)
        if self.transformer_in is not None:
            x = self.transformer_in(x)
        skips = [x]
        for stage in self.down_blocks:
            for index in range(len(stage.resnets)):
                x = stage.attend(index, stage.block(index, x, given), given)
                skips.append(x)
            if stage.downsamplers is not None:
                x = stage.downsamplers[0](x, embedding)
                skips.append(x)
        if self.mid_block is not None:
            x = self.mid_block.block(0, x, given)
            x = self.mid_block.block(1, self.mid_block.attend(0, x, given), given)
        for stage in self.up_blocks:
            for index in range(len(stage.resnets)):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = stage.attend(index, stage.block(index, x, given), given)
            if stage.upsamplers is not None:
                x = stage.upsamplers[0](x, embedding, skips[-1].shape[2:4])
        return self.conv_out(activate(self.conv_norm_out(x), self.config.block.activation))

    def _features(self, x: Num[Array, "*axes"], width: int) -> Float[Array, "*axes e"]:
        config = self.config
        return sinusoidal(
            x.astype(jnp.float32),
            width,
            offset=config.frequency_offset,
            cosines_first=config.cosines_first,
        )

    def _embedding(
        self,
        z: Array,
        time: Num[Array, "b"],
        context: Context | None,
        label: Num[Array, "b *e"] | None,
        numbers: Float[Array, "b k"] | None,
    ) -> Float[Array, "b 1 e"]:
        """Time, label, pooled tokens and numbers, summed."""
        config, first = self.config, self.config.levels[0].width
        e = self.time_embedding(self._features(time, first).astype(z.dtype))
        if config.label != "none":
            if label is None:
                raise UserError(f"this U-Net takes a {config.label} as label; give one")
            e = e + self._label(label, z.dtype)
        if isinstance(self.add_embedding, TextPooling):
            assert context is not None, "pooled tokens are a context"
            e = e + self.add_embedding(context.astype(z.dtype))
        elif self.add_embedding is not None:
            if numbers is None or numbers.shape[1] != config.numbers:
                raise UserError(f"this U-Net takes {config.numbers} numbers an example; give them")
            features = self._features(numbers, config.number_width)
            e = e + self.add_embedding(features.reshape(len(numbers), -1).astype(z.dtype))
        if config.embedding_activation is not None:
            e = activate(e, config.embedding_activation)
        return e[:, None]

    def _label(self, label: Num[Array, "b *e"], dtype: jnp.dtype) -> Float[Array, "b e"]:
        if isinstance(self.class_embedding, Embedding):
            return self.class_embedding(label).astype(dtype)
        if isinstance(self.class_embedding, TimeEmbedding):
            return self.class_embedding(
                self._features(label, self.config.levels[0].width).astype(dtype)
            )
        return label.astype(dtype)


def abstract_unet(config: ConditionalUNetConfig) -> ConditionalUNet:
    """Shapes without values."""
    return jax.eval_shape(lambda key: ConditionalUNet(config, key), jax.random.key(0))
