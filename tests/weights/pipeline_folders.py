"""Tiny published pipelines: folders as diffusers writes them, with fabricated weights and a vocabulary of letters."""

import json
from dataclasses import replace
from pathlib import Path

from families import AUTOENCODERS, ENCODERS, FAMILIES
from torch_truth import build

TEXT = replace(
    ENCODERS["clip text"],
    config={
        **ENCODERS["clip text"].config,
        "vocab_size": 600,
        "hidden_size": 12,
        "num_attention_heads": 2,
    },
)
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def write_tokenizer(folder):
    """CLIP's layout: bytes, bytes that end a word, a few merges, the two marks. Returns the folder."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    merges = ["t h", "th e</w>", "r e", "re d</w>", "c i", "ci r"]
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += [merge.replace(" ", "") for merge in merges] + ["<|startoftext|>", "<|endoftext|>"]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 20,
        "pad_token": "!",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def pipeline(kind, unet, folder, **scheduler):
    """A diffusers pipeline of class `kind` around the family `unet`; also written to `folder`."""
    import diffusers
    from transformers import CLIPTokenizer

    parts = {
        "unet": build(FAMILIES[unet]),
        "vae": build(AUTOENCODERS["autoencoder"]),
        "text_encoder": build(TEXT),
        "tokenizer": CLIPTokenizer.from_pretrained(write_tokenizer(Path(folder) / "made")),
        "scheduler": diffusers.DDIMScheduler(**{**SCHEDULER, **scheduler}),
    }
    if kind != "TextToVideoSDPipeline":
        parts |= {"safety_checker": None, "feature_extractor": None}
        pipe = getattr(diffusers, kind)(**parts, requires_safety_checker=False)
    else:
        pipe = getattr(diffusers, kind)(**parts)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return pipe
