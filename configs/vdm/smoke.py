"""Everything in under a minute: 20 steps of a tiny network on `shapes_tiny`, to see that an installation works."""

from dataclasses import replace

from jaxvid.core.config import load_config
from jaxvid.systems.vdm import VDM
from jaxvid.train.loop import LoopConfig


def config() -> VDM:
    """The configuration."""
    tiny: VDM = load_config("vdm/shapes_tiny")
    return replace(
        tiny,
        model=replace(
            tiny.model,
            channels=16,
            multipliers=(1,),
            attention_levels=(0,),
            head_dim=16,
            embedding_width=32,
        ),
        stages=(replace(tiny.stages[0], steps=20, batch=8, images=2),),
        sampling=replace(tiny.sampling, steps=4),
        heldout=8,
        loop=LoopConfig(log_every=5, save_every=10, sample_every=20),
    )
