"""Numbers for tensors and inputs, drawn from their names: the same in PyTorch's process and in ours, and nothing to store."""

import json
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

PIPELINE_TRUTH = Path(__file__).with_name("pipeline_truth.json")


def generator(name):
    """Of the name alone."""
    return np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))


def weight(name, shape):
    """float32: kernels with deviation 1 / sqrt(inputs), norms about 1, everything else about 0 but not 0."""
    noise = generator(name).standard_normal(shape).astype(np.float32)
    if name.endswith("clip_std"):
        return 1 + 0.1 * np.abs(noise)
    if len(shape) > 1 and ("embedding" in name or "shared" in name or "bias" in name):
        return 0.3 * noise
    if len(shape) > 1:
        return noise / np.sqrt(np.prod(shape[1:]), dtype=np.float32)
    if name.endswith("weight"):
        return 1 + 0.1 * noise
    return 0.1 * noise


def given(name, shape, kind="normal"):
    """An input. kind: "normal", an integer n for integers below n, "time", or "mask" (a first token is always seen)."""
    rng = generator(f"input {name}")
    if kind == "time":
        return rng.integers(0, 1000, shape)
    if kind == "mask":
        mask = rng.random(shape) < 0.6
        mask[..., 0] = True
        return mask
    if isinstance(kind, int):
        return rng.integers(0, kind, shape)
    return rng.standard_normal(shape).astype(np.float32)


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


def write_pipeline(folder, name):
    """The folder of a stored pipeline, as diffusers wrote it. Returns the folder, and diffusers' outputs."""
    truth = json.loads(PIPELINE_TRUTH.read_text())[name]
    folder = Path(folder)
    for file, content in truth["files"].items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(json.dumps(content))
    for file, shapes in truth["shapes"].items():
        save_file(
            {
                key: np.ascontiguousarray(weight(named_once(key), shape))
                for key, shape in shapes.items()
            },
            folder / file,
        )
    if not (folder / "tokenizer").is_dir():
        write_tokenizer(folder / "tokenizer")
    outputs = [np.reshape(each["values"], each["shape"]) for each in truth["outputs"]]
    return folder, outputs


def named_once(name):
    """T5's table of words is one tensor under two names."""
    return "shared.weight" if name == "encoder.embed_tokens.weight" else name


def write_folder(folder, config, shapes, adapter=None, file="diffusion_pytorch_model.safetensors"):
    """A published folder of the tensors that `shapes` names, those of motion modules in its folder `adapter`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if adapter is not None:
        motion = {name: shape for name, shape in shapes.items() if ".motion_modules." in name}
        write_folder(folder / "adapter", {"_class_name": "MotionAdapter", **adapter}, motion)
        shapes = {name: shape for name, shape in shapes.items() if name not in motion}
    tensors = {name: np.ascontiguousarray(weight(name, shape)) for name, shape in shapes.items()}
    save_file(tensors, folder / file)
    return folder
