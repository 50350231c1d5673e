"""The other side of `scene_peers.py`: Vox-E's renderer or nerfstudio's hash encoding, in its own environment.

Needs PyTorch, not jaxvid. The protocol is that of `pairs.py`. A request holds `peer`, the checkout `source`,
`threads`, the file `data` of arrays (npz) and what the peer needs to know besides. Steps and answers:

    vox-e       forward, train      "losses" of the first train steps
    nerfstudio  forward, backward   "rows" of the table and the "shape" of the features

Both are imported from their checkouts unmodified. Written out here is what their files have no function for: the loop
body of Vox-E's trainer (render, mean absolute error, gradients, Adam), which stands inside the one function that
trains a scene. Stubbed: viser, which nerfstudio imports for a class of boxes that the encoding does not use.
"""

import sys
from importlib.util import find_spec
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from pairs import serve, timed


def vox_e(request: dict[str, Any], data: dict[str, torch.Tensor]):
    """Its volumetric model of the grid in `data`, rendering and training on the rays there."""
    from thre3d_atom.modules.volumetric_model import VolumetricModel
    from thre3d_atom.rendering.volumetric.render_interface import Rays
    from thre3d_atom.thre3d_reprs.renderers import SHVoxGridRenderConfig, render_sh_voxel_grid
    from thre3d_atom.thre3d_reprs.voxels import VoxelGrid, VoxelGridLocation, VoxelSize
    from thre3d_atom.utils.imaging_utils import CameraBounds

    low, high = np.array(request["lowest"]), np.array(request["highest"])
    grid = VoxelGrid(
        densities=data["density"],
        features=data["colour"],
        voxel_size=VoxelSize(*((high - low) / data["density"].shape[:3]).tolist()),
        grid_location=VoxelGridLocation(*((low + high) / 2).tolist()),
        density_preactivation=torch.nn.Identity(),
        density_postactivation=torch.nn.Softplus(),
        expected_density_scale=request["gain"],
        tunable=True,
    )
    config = SHVoxGridRenderConfig(
        num_samples_per_ray=request["samples"],
        camera_bounds=CameraBounds(request["near"], request["far"]),
        perturb_sampled_points=False,
        white_bkgd=True,
    )
    model = VolumetricModel(grid, render_sh_voxel_grid, config, device=torch.device("cpu"))
    rays, target = Rays(data["origin"], data["direction"]), data["target"]
    optimizer = torch.optim.Adam(grid.parameters(), lr=request["learning_rate"])
    losses = []

    def forward():
        with torch.no_grad():
            model.render_rays(rays)

    def train():
        loss = torch.nn.functional.l1_loss(model.render_rays(rays).colour, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    steps = {"forward": forward, "train": train}
    first_s = {name: timed(step)["wall"] for name, step in steps.items()}
    for _ in range(request["compared"] - 1):
        train()
    return steps, {"first_s": first_s, "losses": losses[: request["compared"]]}


def nerfstudio(request: dict[str, Any], data: dict[str, torch.Tensor]):
    """Its hash encoding of the points in `data`, and the gradient of the table for the cotangent there."""
    if find_spec("viser") is None:
        sys.modules["viser"] = sys.modules["viser.transforms"] = MagicMock()
    from nerfstudio.field_components.encodings import HashEncoding

    encoding = HashEncoding(implementation="torch", **request["arguments"])
    points, cotangent = data["points"], data["cotangent"]

    def forward():
        with torch.no_grad():
            encoding(points)

    def backward():
        encoding.zero_grad()
        encoding(points).backward(cotangent)

    steps = {"forward": forward, "backward": backward}
    first_s = {name: timed(step)["wall"] for name, step in steps.items()}
    shape = list(encoding(points[:2]).shape)
    return steps, {"first_s": first_s, "rows": len(encoding.hash_table), "shape": shape}


def build(request: dict[str, Any]):
    """The steps and the description that the request asks for."""
    torch.manual_seed(0)
    torch.set_num_threads(request["threads"])
    sys.path.insert(0, request["source"])
    data = {name: torch.from_numpy(array) for name, array in np.load(request["data"]).items()}
    make = {"vox-e": vox_e, "nerfstudio": nerfstudio}[request["peer"]]
    steps, description = make(request, data)
    return steps, description | {"versions": f"torch {torch.__version__}"}


if __name__ == "__main__":
    serve(build)
