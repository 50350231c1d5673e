# %% [markdown]
# # jaxvid in five steps
#
# Load the shipped text-to-video model, sample from it, guide it, look inside, and train it a little further. On two CPU
# cores the whole notebook takes less than a minute. Open it as a notebook with `jupytext --to notebook quickstart.py`.

# %%
from dataclasses import replace

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxvid
from jaxvid.core.paths import unflatten
from jaxvid.core.rng import named
from jaxvid.data.shapes import ShapesConfig, caption, render, sample_scene
from jaxvid.diffusion import process
from jaxvid.diffusion.types import Level
from jaxvid.evaluate.captions import score
from jaxvid.systems.vdm.report import to_uint8
from jaxvid.systems.vdm.training import network_denoise

# %% [markdown]
# ## 1. Load
#
# A system is a frozen dataclass; the weights are a flat dictionary from path to array.

# %%
system, params = jaxvid.load("vdm/shapes")
print(f"{len(params)} arrays, {sum(leaf.size for leaf in params.values()):,} parameters")
print(system.sampling)


# %% [markdown]
# ## 2. Sample
#
# Time runs from left to right.


# %%
def filmstrip(videos, titles):
    figure, axes = plt.subplots(len(videos), 1, figsize=(12, 1.1 * len(videos)), squeeze=False)
    for axis, video, title in zip(axes[:, 0], to_uint8(videos), titles, strict=True):
        axis.imshow(np.concatenate(list(video), axis=1))
        axis.set_title(title, fontsize=8, loc="left")
        axis.axis("off")
    figure.tight_layout()
    plt.show()


prompts = ["a large red circle moves left", "a small yellow square spins on a black background"]
few = replace(system.sampling, steps=12)
videos = system.sample(params, jax.random.key(0), prompts, sampling=few)
filmstrip(videos, prompts)
for prompt, video in zip(prompts, to_uint8(videos), strict=True):
    print(prompt, score(video, prompt))

# %% [markdown]
# ## 3. Guide
#
# The guidance scale is a traced number: another one does not compile anew. 1 is unguided.

# %%
for scale in (1.5, 4.0):
    guided = replace(few, guidance=scale)
    strip = system.sample(params, jax.random.key(0), prompts, sampling=guided)
    filmstrip(strip, [f"guidance {scale}: {prompt}" for prompt in prompts])

# %% [markdown]
# ## 4. Look inside
#
# What does the network make of a clip at different levels of noise? Log-SNR -4 is nearly all noise.

# %%
scene = sample_scene(ShapesConfig(), 7)
clip = jnp.asarray(render(scene, 16, 32, 32), jnp.float32)[None] / 127.5 - 1.0
networks = unflatten(system.networks(), params)
tokens = jnp.asarray(system.tokenizer.encode(caption(scene)))[None, None]
embedding = networks.embed(tokens)


@jax.jit
def estimate(logsnr):
    noise = jax.random.normal(jax.random.key(1), clip.shape)
    z = process.q_sample(clip, noise, logsnr)
    return z, network_denoise(system, networks, z, Level(logsnr), embedding).x


rows, titles = [clip], [caption(scene)]
for logsnr in (-4.0, 0.0, 4.0):
    z, x = estimate(jnp.full((1,), logsnr))
    rows += [jnp.clip(z, -1.0, 1.0), jnp.clip(x, -1.0, 1.0)]
    titles += [f"z at log-SNR {logsnr}", "the network's estimate of x"]
filmstrip(jnp.concatenate(rows), titles)

# %% [markdown]
# ## 5. Train
#
# A phase is a few pure functions. The same ones run sharded on a pod.

# %%
stage = replace(system.stages[-1], batch=4)
phase = replace(system, stages=(stage,)).phases()[0]
state = phase.init({"trainable": params}, jax.random.key(2))
step, batches = jax.jit(phase.step), phase.batches(None)
for number in range(3):
    state, sums = step(state, next(batches), named(jax.random.key(3), number))
    total, count = sums["loss"]
    print(f"step {number}: loss {float(total / count):.4f}")
