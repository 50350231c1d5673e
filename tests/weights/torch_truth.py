"""What PyTorch says of the tiny networks: names, shapes and outputs, for tests that run without it.

python tests/weights/torch_truth.py        writes truth.json; needs the extra `parity`
"""

import importlib
import json
from pathlib import Path

import numpy as np
from fabricate import given, named_once, weight
from families import FAMILIES

TRUTH = Path(__file__).with_name("truth.json")


def build(family):
    """The PyTorch model with fabricated weights."""
    import torch

    module = importlib.import_module(family.library)
    kind = getattr(module, family.name)
    if family.library == "transformers":
        config = kind.config_class(**family.config)
        config.architectures = [family.name]
        model = kind(config)
    else:
        model = kind(**family.config)
    if family.adapter is not None:
        adapter = module.MotionAdapter(**family.adapter)
        model = module.UNetMotionModel.from_unet2d(model, adapter)
    state = model.state_dict()
    for name, tensor in state.items():
        if not name.endswith((".position_ids", ".pos_embed.pe")):
            made = weight(named_once(name), tuple(tensor.shape))
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(made)))
    model.load_state_dict(state)
    return model.eval()


def ask(model, family, round_to=None):
    """The model's float32 outputs for the fabricated inputs, as a list of arrays.

    round_to: the name of a type; floating inputs are of it first, and then of the type of the model's parameters.
    """
    import torch

    inputs = {
        name: torch.from_numpy(np.ascontiguousarray(given(name, *about)))
        for name, about in family.inputs.items()
    }
    if round_to is not None:
        inputs = {
            name: each.to(getattr(torch, round_to)).to(model.dtype)
            if each.is_floating_point()
            else each
            for name, each in inputs.items()
        }
    with torch.no_grad():
        outputs = family.ask(model, inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [output.float().numpy() for output in outputs]


def main():
    """Writes the truth of all families."""
    truth = {}
    for name, family in FAMILIES.items():
        model = build(family)
        truth[name] = {
            "config": config_of(model, family),
            "shapes": {key: list(tensor.shape) for key, tensor in model.state_dict().items()
                       if named_once(key) == key},
            "outputs": [
                {"shape": list(each.shape), "values": [float(f"{x:.7g}") for x in each.ravel()]}
                for each in ask(model, family)
            ],
        }  # fmt: skip
    TRUTH.write_text(json.dumps(truth, separators=(",", ":")) + "\n")


def config_of(model, family):
    """What `save_pretrained` would write to config.json."""
    if family.library == "transformers":
        config = model.config.to_diff_dict()
        config["architectures"] = [family.name]
        return config
    config = {"_class_name": family.name, **dict(model.config)}
    if family.adapter is None:
        return config
    return {"_class_name": family.name, **family.config}


if __name__ == "__main__":
    main()
