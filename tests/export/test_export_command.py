"""The command line of exports, on a run of a known scene."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from small_exports import (
    CONFIG,
    SIMILARITY,
    area_and_volume,
    assert_closed_manifold,
    columns_of,
    filled_grid,
    fitted,
    orbit,
    read_glb,
    read_ply,
)

from jaxedit import cli
from jaxedit.fields.hash_grid import HashGrid, HashGridConfig
from jaxedit.scene.record import write_record
from jaxvid.core.paths import flatten
from jaxvid.core.run import RunDirectory


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory as `jaxedit fit` leaves it, of the scene that is known."""
    folder = tmp_path_factory.mktemp("export") / "run"
    scene = fitted()
    directory = RunDirectory.open(folder, CONFIG)
    write_record(scene.record, folder / "scene.json")
    with directory.checkpointer() as checkpoints:
        tree = {f"trainable/{name}": values for name, values in scene.state["trainable"].items()}
        checkpoints.save(1, tree, meta={"phase": "fit"})
    return folder


def export(run, out, *options):
    return cli.main(["export", str(run), "--out", str(out), *map(str, options)])


def test_points_are_written_in_the_files_world(run, tmp_path, capsys):
    clouds = {}
    for world in ("file", "scene"):
        out = tmp_path / f"{world}.ply"
        assert export(run, out, "--format", "ply", "--points", 200, "--world", world) == 0
        assert capsys.readouterr().out.strip() == str(out)
        found, comments = read_ply(out.read_bytes())
        assert any(line.startswith("world: of the") for line in comments)
        clouds[world] = found["vertex"]
    assert clouds["file"].dtype.names == (*"xyz", "nx", "ny", "nz", "red", "green", "blue", "opacity")  # fmt: skip
    there = columns_of(clouds["scene"], "x y z").astype(np.float64)
    back = SIMILARITY.points(columns_of(clouds["file"], "x y z").astype(np.float64))
    np.testing.assert_allclose(back, there, atol=1e-5)
    normals = columns_of(clouds["file"], "nx ny nz") @ SIMILARITY.rotation.T
    np.testing.assert_allclose(normals, columns_of(clouds["scene"], "nx ny nz"), atol=1e-5)
    assert np.percentile(np.abs(np.linalg.norm(there, axis=-1) - 0.6), 90) < 0.1
    assert len(there) == 200


def test_meshes_are_written_as_ply_and_glb(run, tmp_path, capsys):
    options = ["--format", "mesh", "--resolution", 20]
    assert export(run, tmp_path / "a.ply", *options) == 0
    assert "chosen by Otsu's threshold" in capsys.readouterr().err
    found, comments = read_ply((tmp_path / "a.ply").read_bytes())
    assert any("level: density" in line for line in comments)
    points = columns_of(found["vertex"], "x y z").astype(np.float64)
    assert_closed_manifold(found["face"].astype(int), len(points))
    np.testing.assert_allclose(np.linalg.norm(SIMILARITY.points(points), axis=-1), 0.6, atol=0.06)
    assert area_and_volume(points, found["face"])[1] > 0
    assert export(run, tmp_path / "a.GLB", *options, "--keep-largest") == 0
    _, _, arrays = read_glb((tmp_path / "a.GLB").read_bytes())
    np.testing.assert_allclose(arrays["POSITION"][0], points, atol=1e-6)
    colour = arrays["COLOR_0"][0]
    right = SIMILARITY.points(points)[:, 0] > 0.1
    assert colour[right, 0].min() > 230
    assert colour[right, 2].max() < 5


def test_grids_and_cameras_are_written(run, tmp_path):
    assert export(run, tmp_path / "a.npz", "--format", "npz") == 0
    found = np.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(found["density"], filled_grid().density_values[...][..., 0])
    assert export(run, tmp_path / "new" / "transforms.json", "--format", "cameras") == 0
    meta = json.loads((tmp_path / "new" / "transforms.json").read_text())
    assert len(meta["frames"]) == 13
    assert meta["test_filenames"] == [f"images/test_{i}.png" for i in range(3)]
    pose = np.array(meta["frames"][0]["transform_matrix"])
    np.testing.assert_allclose(SIMILARITY.poses(pose[None, :3])[0], orbit(10).pose[0], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--format ply --out x.glb", "--out is x.glb; give a name that ends in .ply for"),
        ("--format mesh --out x.obj", "ends in .ply or .glb"),
        ("--format npz --out x", "ends in .npz"),
        ("--format obj --out x.obj", "invalid choice: 'obj'"),
        ("--format mesh --out x.ply --resolution 1", "--resolution is 1; give 2 to 1024"),
        ("--format mesh --out x.ply --resolution 2000", "--resolution is 2000; give 2 to 1024"),
        ("--format mesh --out x.ply --resolution 8 --level 1e9", "surface is empty at level 1e+09; densities reach"),
        ("--format mesh --out x.ply --level 0", "--level is 0; give a density above 0"),
        ("--format mesh --out x.ply --level nan", "--level is nan"),
        ("--format mesh --out x.ply --keep-largest 2", "--keep-largest is 2"),
        ("--format mesh --out x.ply --points 10", "--points belongs to --format ply, not mesh"),
        ("--format ply --out x.ply --level 3", "--level belongs to --format mesh, not ply"),
        ("--format npz --out x.npz --world file", "--world belongs to --format ply or mesh or cameras"),
        ("--format npz --out x.npz --resolution 32", "a voxel grid is exported as it is (20x20x20)"),
        ("--format ply --out x.ply --points 0", "--points is 0"),
        ("--format ply --out x.ply --seed -1", "--seed is -1"),
        ("--format ply --out folder.ply", "folder.ply is a folder"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(run, options, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.ply").mkdir()
    assert cli.main(["export", str(run), *options.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder.ply"]
    assert not list((tmp_path / "folder.ply").iterdir())


def test_a_run_without_a_checkpoint_is_refused(tmp_path, capsys):
    RunDirectory.open(tmp_path / "run", CONFIG)
    write_record(fitted().record, tmp_path / "run" / "scene.json")
    assert export(tmp_path / "run", tmp_path / "x.ply", "--format", "ply") == 2
    error = capsys.readouterr().err
    assert "has no checkpoint yet" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x.ply").exists()


def test_sampled_fields_take_a_resolution(tmp_path):
    """A run of another field, through the command line."""
    kind = HashGridConfig(levels=2, table=8, base=4, finest=8, width=8, geometry=4)
    config = replace(CONFIG, field=kind)
    scene = fitted()
    make = jax.jit(HashGrid, static_argnums=(0, 1))
    field = make(kind, config.frame(scene.record.box), jax.random.key(0))
    folder = tmp_path / "run"
    directory = RunDirectory.open(folder, config)
    write_record(scene.record, folder / "scene.json")
    with directory.checkpointer() as checkpoints:
        tree = {f"trainable/field/{name}": values for name, values in flatten(field).items()}
        checkpoints.save(1, tree, meta={"phase": "fit"})
    assert export(folder, tmp_path / "a.npz", "--format", "npz", "--resolution", 5) == 0
    x = (np.stack(np.meshgrid(*[np.arange(5)] * 3, indexing="ij"), -1) + 0.5) / 2.5 - 1
    density = jax.jit(lambda field, x: field.density(x))(field, x.astype(np.float32))
    found = np.load(tmp_path / "a.npz")
    np.testing.assert_allclose(found["density"], density, rtol=1e-5)
    assert found["colour"].shape == (5, 5, 5, 3)
