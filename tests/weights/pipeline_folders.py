"""Tiny published pipelines as diffusers makes, writes and runs them; needs the extra `parity`.

python tests/weights/pipeline_folders.py        writes pipeline_truth.json, for tests that run without it
"""

import contextlib
import importlib
import json
import struct
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import torch
from fabricate import PIPELINE_TRUTH, given, write_tokenizer
from families import AUTOENCODERS, ENCODERS, FAMILIES
from pipeline_cases import (
    CASES,
    KEY,
    LEVELS,
    NEGATIVE,
    PROMPTS,
    UNCLIP_SHAPES,
    UNCLIP_STEPS,
    photograph,
    revised_pair,
)
from torch_truth import build

NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
UNCHECKED = {"safety_checker": None, "feature_extractor": None}


def changed(family, **changes):
    """A family with another configuration."""
    return replace(family, config={**family.config, **changes})


TEXT = changed(ENCODERS["clip text"], vocab_size=600, hidden_size=12, num_attention_heads=2)


def channels_first(x):
    """`... h w c` to `... c h w`, as PyTorch's array."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, -3)))


def start(shape):
    """The noise of our shape `b t h w c`, in their layout; frames stay where they are."""
    return channels_first(given("start", shape))


# Making ------------------------------------------------------------------------------------------------------------


def saved(kind, folder, parts, **more):
    """A diffusers pipeline of class `kind`; also written to `folder`."""
    pipe = getattr(diffusers, kind)(**parts, **more)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return pipe


def scheduler(kind="DDIMScheduler", **changes):
    """A diffusers scheduler."""
    return getattr(diffusers, kind)(**changes)


def latent_parts(unet, **changes):
    """The parts that all latent pipelines have, around the family `unet`; changes: of the scheduler."""
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = CLIPTokenizer.from_pretrained(write_tokenizer(folder))
    return {
        "unet": build(FAMILIES[unet]),
        "vae": build(AUTOENCODERS["autoencoder"]),
        "text_encoder": build(TEXT),
        "tokenizer": tokenizer,
        "scheduler": scheduler(**{**NOISE, **changes}),
    }


def stable_diffusion(**changes):
    """Of the scheduler."""

    def make(folder):
        parts = {**latent_parts("stable diffusion 1", **changes), **UNCHECKED}
        return saved("StableDiffusionPipeline", folder, parts, requires_safety_checker=False)

    return make


def instruct_pix2pix(folder):
    """Eight channels."""
    parts = {**latent_parts("instruct pix2pix"), **UNCHECKED}
    return saved(
        "StableDiffusionInstructPix2PixPipeline", folder, parts, requires_safety_checker=False
    )


def upscaler(folder):
    """The x4 upscaler, whose autoencoder has three levels."""
    low = scheduler("DDPMScheduler", beta_start=0.0001, beta_schedule="scaled_linear")
    vae = changed(
        AUTOENCODERS["autoencoder"],
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        scaling_factor=0.08333,
    )
    parts = latent_parts("upscaler", prediction_type="v_prediction")
    parts |= {"vae": build(vae), "low_res_scheduler": low, **UNCHECKED}
    return saved("StableDiffusionUpscalePipeline", folder, parts, max_noise_level=9)


def modelscope(folder):
    """Text to video."""
    return saved("TextToVideoSDPipeline", folder, latent_parts("modelscope"))


def animatediff(folder):
    """The image model's folder, and the motion modules' in `adapter`."""
    family = FAMILIES["animatediff"]
    unet = build(family)
    stable_diffusion()(folder)
    unet.save_motion_modules(Path(folder) / "adapter")
    image = diffusers.UNet2DConditionModel(**family.config)
    state = unet.state_dict()
    image.load_state_dict({name: state[name] for name in image.state_dict()})
    image.save_pretrained(Path(folder) / "unet")
    adapter = diffusers.MotionAdapter.from_pretrained(Path(folder) / "adapter")
    parts = {**latent_parts("stable diffusion 1"), "unet": image}
    pipe = diffusers.AnimateDiffPipeline(**parts, motion_adapter=adapter)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def karlo(folder):
    """8 pixels and then 20; the second enlarging network is a deeper one."""
    text = replace(changed(TEXT, projection_dim=12), name="CLIPTextModelWithProjection")
    enlarger = changed(FAMILIES["karlo super-resolution"], sample_size=20)
    kind, small = "UnCLIPScheduler", {"variance_type": "fixed_small_log"}
    parts = {
        "prior": build(changed(FAMILIES["karlo prior"], num_embeddings=20)),
        "decoder": build(changed(FAMILIES["karlo decoder"], sample_size=8)),
        "text_encoder": build(text),
        "tokenizer": latent_parts("stable diffusion 1")["tokenizer"],
        "text_proj": build(
            changed(FAMILIES["karlo conditions"], cross_attention_dim=12, time_embed_dim=64)
        ),
        "super_res_first": build(enlarger),
        "super_res_last": build(changed(enlarger, layers_per_block=2)),
        "prior_scheduler": scheduler(
            kind, **small, prediction_type="sample", clip_sample_range=1.5
        ),
        "decoder_scheduler": scheduler(kind, variance_type="learned_range"),
        "super_res_scheduler": scheduler(kind, **small),
    }
    return saved("UnCLIPPipeline", folder, parts)


def deepfloyd(stage):
    """8 pixels, or 8 to 16; a tokenizer of single letters."""

    def make(folder):
        from transformers import T5Tokenizer

        pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -3.0)]
        pieces += [(letter, -2.0) for letter in "abcdefghijklmnopqrstuvwxyz,!."]
        parts = {
            "tokenizer": T5Tokenizer(vocab=pieces, extra_ids=0),
            "text_encoder": build(changed(FAMILIES["t5"], d_model=12)),
            "unet": build(changed(FAMILIES[f"deepfloyd {stage}"], sample_size=8 * stage)),
            "scheduler": scheduler(
                "DDPMScheduler",
                beta_schedule="squaredcos_cap_v2",
                variance_type="learned_range",
                thresholding=True,
                dynamic_thresholding_ratio=0.95,
                sample_max_value=1.5,
            ),
            **UNCHECKED,
            "watermarker": None,
        }
        if stage == 2:
            parts["image_noising_scheduler"] = scheduler(
                "DDPMScheduler", beta_schedule="squaredcos_cap_v2"
            )
        kind = "IFPipeline" if stage == 1 else "IFSuperResolutionPipeline"
        return saved(kind, folder, parts, requires_safety_checker=False)

    return make


def stable_video(folder):
    """Stable Video Diffusion."""
    from transformers import CLIPImageProcessor

    parts = {
        "vae": build(AUTOENCODERS["temporal decoder"]),
        "image_encoder": build(changed(FAMILIES["clip image"], image_size=224, patch_size=56)),
        "unet": build(FAMILIES["stable video diffusion"]),
        "scheduler": scheduler(
            "EulerDiscreteScheduler",
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            prediction_type="v_prediction",
            sigma_max=700.0,
            sigma_min=0.002,
            timestep_spacing="leading",
            timestep_type="continuous",
            use_karras_sigmas=True,
        ),
        "feature_extractor": CLIPImageProcessor(),
    }
    return saved("StableVideoDiffusionPipeline", folder, parts)


# Asking ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def drawing(modules, noise):
    """Diffusers' modules draw the arrays of `noise` one after the other, and nothing else."""
    left = list(noise)

    def draw(shape, **_):
        array = left.pop(0)
        assert tuple(shape) == tuple(array.shape)
        return array.clone()

    modules = [importlib.import_module(f"diffusers.{name}") for name in modules]
    before = [module.randn_tensor for module in modules]
    for module in modules:
        module.randn_tensor = draw
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            module.randn_tensor = own
    assert not left


def step_noise(key, steps, shape):
    """What our ancestral sampler adds in each step but the last, in our layout."""
    import jax

    from jaxvid.core.rng import named

    return [
        np.array(jax.random.normal(named(named(key, "step", i), "noise"), shape))
        for i in range(steps - 1)
    ]


def ask_image(pipe):
    """Prompts and a negative one."""
    return pipe(
        PROMPTS,
        negative_prompt=[NEGATIVE] * 2,
        height=16,
        width=24,
        num_inference_steps=20,
        guidance_scale=7.5,
        latents=start((2, 1, 8, 12, 4))[:, 0],
        output_type="np",
    ).images


def ask_edit(pipe):
    """Both guidances."""
    return pipe(
        PROMPTS,
        image=channels_first(photograph((2, 16, 24, 3))),
        num_inference_steps=20,
        guidance_scale=7.5,
        image_guidance_scale=1.5,
        latents=start((2, 1, 8, 12, 4))[:, 0],
        output_type="np",
    ).images


def ask_revision(pipe):
    """Instruct-NeRF2NeRF's edit of a render, written out with the pipeline's networks: latents and pixels at each level.

    The scheduler is told that it has as many train timesteps as the level says, which is how its grid comes to end there.
    """
    import jax

    from jaxvid.core.rng import named

    render, original = (channels_first(x) for x in revised_pair())
    table = pipe.scheduler.alphas_cumprod
    noise = {
        name: channels_first(jax.random.normal(named(KEY, name), (2, 1, 8, 12, 4))[:, 0])
        for name in ("latents", "noise")
    }
    tokens = pipe.tokenizer(
        [*PROMPTS, "", "", "", ""], padding="max_length", truncation=True, return_tensors="pt"
    )
    found = []
    for level in LEVELS:
        pipe.scheduler.register_to_config(num_train_timesteps=level)
        pipe.scheduler.set_timesteps(20)
        times = pipe.scheduler.timesteps
        assert times.tolist() == [level // 20 * i + 1 for i in reversed(range(20))]
        with torch.no_grad():
            context = pipe.text_encoder(tokens.input_ids)[0]
            posterior = pipe.vae.encode(render).latent_dist
            z = pipe.vae.config.scaling_factor * (posterior.mean + posterior.std * noise["latents"])
            z = table[times[0]].sqrt() * z + (1 - table[times[0]]).sqrt() * noise["noise"]
            image = pipe.vae.encode(original).latent_dist.mode()
            images = torch.cat([image, image, torch.zeros_like(image)])
            for time in times:
                given = torch.cat([torch.cat([z, z, z]), images], dim=1)
                eps = pipe.unet(given, time, encoder_hidden_states=context).sample
                of_text, of_image, of_none = eps.chunk(3)
                eps = of_none + 7.5 * (of_text - of_image) + 1.5 * (of_image - of_none)
                z = pipe.scheduler.step(eps, time, z).prev_sample
            decoded = pipe.vae.decode(z / pipe.vae.config.scaling_factor).sample
        found += [z.permute(0, 2, 3, 1), (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)]
    return tuple(x.numpy() for x in found)


def ask_upscale(pipe):
    """Noise level 7."""
    module = "pipelines.stable_diffusion.pipeline_stable_diffusion_upscale"
    with drawing([module], [channels_first(given("eps", (2, 8, 12, 3)))]):
        return pipe(
            PROMPTS,
            image=channels_first(photograph((2, 8, 12, 3))),
            noise_level=7,
            num_inference_steps=20,
            guidance_scale=9.0,
            latents=start((2, 1, 8, 12, 4))[:, 0],
            output_type="np",
        ).images


def ask_video(pipe):
    """Three frames."""
    return pipe(
        PROMPTS,
        height=16,
        width=24,
        num_frames=3,
        num_inference_steps=20,
        guidance_scale=9.0,
        latents=start((2, 3, 8, 12, 4)).transpose(1, 2),
        output_type="np",
    ).frames


def ask_unclip(pipe):
    """The image vector, and the image."""
    import jax

    from jaxvid.core.rng import named

    starts, drawn, vectors = {}, [], []
    for name, shape in UNCLIP_SHAPES.items():
        key = named(KEY, name)
        noise = [np.array(jax.random.normal(named(key, "start"), shape))]
        noise += step_noise(key, UNCLIP_STEPS[name], shape)
        image = len(shape) > 2
        noise = [channels_first(each[:, 0]) if image else torch.from_numpy(each) for each in noise]
        starts[name], drawn = noise[0], drawn + noise[1:]
    finish = pipe.prior.post_process_latents

    def record(z):
        vectors.append(finish(z))
        return vectors[0]

    pipe.prior.post_process_latents = record
    with drawing(["schedulers.scheduling_unclip"], drawn):
        images = pipe(
            PROMPTS,
            prior_num_inference_steps=UNCLIP_STEPS["prior"],
            decoder_num_inference_steps=UNCLIP_STEPS["decoder"],
            super_res_num_inference_steps=UNCLIP_STEPS["enlarger"],
            prior_latents=starts["prior"],
            decoder_latents=starts["decoder"],
            super_res_latents=starts["enlarger"],
            output_type="np",
        ).images
    return vectors[0].numpy(), images


def ask_deepfloyd(stage):
    """Both stages draw their start; the second the image's noise too."""

    def ask(pipe):
        side = 8 * stage
        name = "pipeline_if" if stage == 1 else "pipeline_if_superresolution"
        noise = [start((2, 1, side, side, 3))[:, 0]]
        more = {}
        if stage == 2:
            noise.append(channels_first(given("eps", (2, 1, 16, 16, 3))[:, 0]))
            more = {"image": channels_first(photograph((2, 1, 8, 8, 3))[:, 0])}
        for each in step_noise(KEY, 20, (2, 1, side, side, 3)):
            noise.append(channels_first(each[:, 0]))
        with drawing([f"pipelines.deepfloyd_if.{name}", "schedulers.scheduling_ddpm"], noise):
            return pipe(
                PROMPTS, num_inference_steps=20, guidance_scale=5.0, output_type="np", **more
            ).images

    return ask


def ask_stable_video(pipe):
    """From a picture, which the pipeline resizes for CLIP."""
    from PIL import Image

    module = "pipelines.stable_video_diffusion.pipeline_stable_video_diffusion"
    with drawing([module], [channels_first(given("eps", (1, 40, 56, 3)))]):
        return pipe(
            Image.fromarray(np.uint8(127.5 * (1 + photograph((40, 56, 3))))),
            height=40,
            width=56,
            num_frames=3,
            num_inference_steps=6,
            fps=9,
            motion_bucket_id=90,
            noise_aug_strength=0.1,
            latents=start((1, 3, 20, 28, 4)),
            output_type="np",
        ).frames


Pair = tuple[Callable, Callable]
PIPELINES: dict[str, Pair] = {
    "stable diffusion": (stable_diffusion(), ask_image),
    "stable diffusion, v": (stable_diffusion(prediction_type="v_prediction"), ask_image),
    "stable diffusion, trailing": (
        stable_diffusion(timestep_spacing="trailing", set_alpha_to_one=True, steps_offset=0),
        ask_image,
    ),
    "stable diffusion, zero terminal": (
        stable_diffusion(
            timestep_spacing="trailing",
            rescale_betas_zero_snr=True,
            prediction_type="v_prediction",
        ),
        ask_image,
    ),
    "instruct pix2pix": (instruct_pix2pix, ask_edit),
    "instruct pix2pix, revised": (instruct_pix2pix, ask_revision),
    "upscaler": (upscaler, ask_upscale),
    "modelscope": (modelscope, ask_video),
    "animatediff": (animatediff, ask_video),
    "karlo": (karlo, ask_unclip),
    "deepfloyd 1": (deepfloyd(1), ask_deepfloyd(1)),
    "deepfloyd 2": (deepfloyd(2), ask_deepfloyd(2)),
    "stable video diffusion": (stable_video, ask_stable_video),
}
STORED = ("stable diffusion", "instruct pix2pix", "instruct pix2pix, revised", "upscaler", "modelscope", "karlo", "deepfloyd 1",
          "deepfloyd 2", "stable video diffusion")  # fmt: skip


def outputs(name, folder):
    """What diffusers gives, as a list; its folder is left at `folder`."""
    return asked(name, PIPELINES[name][0](folder))


def asked(name, pipe):
    """What that pipeline gives, as a list."""
    found = PIPELINES[name][1](pipe)
    return list(found) if isinstance(found, tuple) else [np.asarray(found)]


def reopened(folder):
    """The pipeline of a folder, as diffusers reads it."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def described(folder):
    """A folder without its numbers: the JSON files, and names and shapes of the tensors."""
    files, shapes = {}, {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.suffix == ".json" and not name.startswith("tokenizer/vocab"):
            files[name] = json.loads(file.read_text())
        elif file.suffix == ".safetensors":
            with file.open("rb") as stream:
                (size,) = struct.unpack("<Q", stream.read(8))
                header = json.loads(stream.read(size))
            header.pop("__metadata__", None)
            shapes[name] = {key: about["shape"] for key, about in header.items()}
    if "tokenizer/tokenizer.json" in files and "text_encoder/config.json" in files:
        kind = files["text_encoder/config.json"]["architectures"][0]
        if kind.startswith("CLIP"):  # made anew
            files = {name: each for name, each in files.items() if "tokenizer/" not in name}
    return {"files": files, "shapes": shapes}


def main():
    """Writes the truth of the stored pipelines."""
    truth = {}
    for name in STORED:
        with tempfile.TemporaryDirectory() as folder:
            found = outputs(name, folder)
            values = [
                {"shape": list(each.shape), "values": [float(f"{x:.5g}") for x in each.ravel()]}
                for each in found
            ]
            truth[name] = {**described(Path(folder)), "outputs": values}
    PIPELINE_TRUTH.write_text(json.dumps(truth, separators=(",", ":")) + "\n")


assert set(PIPELINES) == set(CASES)
if __name__ == "__main__":
    main()
