"""Writing tensors as safetensors: one file, or shards and their index, in the layout of diffusers and transformers."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

LIMIT = 4 << 30  # bytes of a shard; the writer holds one in memory


def write_shards(
    folder: Path,
    file: str,
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    metadata: Mapping[str, str],
    limit: int = LIMIT,
) -> None:
    """Writes tensors as they come: `folder/file`, or shards of at most `limit` bytes (a larger tensor has its own).

    Raises ValueError for a name that comes twice, OSError.
    """
    shards: list[Path] = []
    places: dict[str, int] = {}
    pending: dict[str, np.ndarray] = {}
    total = 0

    def flush() -> None:
        shards.append(folder / f"{file}.{len(shards)}")
        save_file(pending, shards[-1], metadata=dict(metadata))
        pending.clear()

    for name, tensor in tensors:
        if name in places:
            raise ValueError(f"two tensors are named {name}")
        if pending and sum(each.nbytes for each in pending.values()) + tensor.nbytes > limit:
            flush()
        pending[name] = np.ascontiguousarray(tensor).reshape(tensor.shape)
        places[name] = len(shards)
        total += tensor.nbytes
    flush()
    stem = file.removesuffix(".safetensors")
    count = len(shards)
    names = [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    names = [file] if count == 1 else names
    for shard, name in zip(shards, names, strict=True):
        shard.chmod(0o644)  # the library's files are their owner's alone
        shard.rename(folder / name)
    if count > 1:
        index = {
            "metadata": {"total_size": total},
            "weight_map": {name: names[place] for name, place in places.items()},
        }
        text = json.dumps(index, indent=1) + "\n"
        (folder / f"{file}.index.json").write_text(text)
