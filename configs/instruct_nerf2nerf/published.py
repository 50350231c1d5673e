r"""Instruct-NeRF2NeRF (Haque et al. 2023) with the numbers of its public code: 15,000 steps, an edit every 10 of them.

    jaxedit edit runs/bear --config instruct_nerf2nerf/published --editor instruct-pix2pix \
        --instruction "turn the bear into a polar bear" --training.lpips lpips_alex

The editor is a local folder of the public InstructPix2Pix, the scene any fitted one (the authors' is nerfacto's: `reconstruct/capture`).
20 DDIM steps between a noise level from U{20..980} and 0; guidance 7.5 and 1.5; 16 patches of 32x32, L1 + LPIPS, both of weight 1;
Adam at 1e-2.

Ours, where the public code says other things or nothing: camera poses stay as they are (the authors' release had their learning rate at
1e-30, later versions refine them); Adam's rate stays where theirs decays by a factor of 100 in 200,000 steps, of which an edit
sees 7.5%; images hold 8 bits; a voxel grid, which the paper does not have, is stored whole while it is edited.

Expected result and cost: not measured at this size; no published InstructPix2Pix weights were at hand.
"""

from jaxedit.systems.instruct_nerf2nerf import Recipe
from jaxvid.train.loop import LoopConfig


def config() -> Recipe:
    """The configuration."""
    return Recipe(loop=LoopConfig(log_every=50, save_every=250, sample_every=500, keep=1))
