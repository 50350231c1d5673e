"""Reconstruction: batches, the loss's closed forms, fits of a toy scene, resuming, devices, and the command line."""

import json
from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxedit import cli
from jaxedit.evaluate import psnr, ssim
from jaxedit.fields.hash_grid import HashGridConfig
from jaxedit.fields.packed_grid import PackedGrid
from jaxedit.fields.voxel_grid import VoxelGridConfig
from jaxedit.render.occupancy import OccupancyConfig
from jaxedit.render.render import RenderConfig
from jaxedit.scene.load import SceneConfig
from jaxedit.scene.paths import focus_of, spiral, through, turntable
from jaxedit.scene.poses import look_at
from jaxedit.scene.record import SceneRecord, read_record, write_record
from jaxedit.scene.scene import Scene
from jaxedit.scene.toy import capture, toy_scene
from jaxedit.systems.reconstruct import Fit, Reconstruct, training
from jaxedit.systems.reconstruct.batches import RayBatches
from jaxedit.systems.reconstruct.stored import load_fitted
from jaxedit.systems.reconstruct.training import ray_loss
from jaxvid.core.errors import UserError
from jaxvid.core.mesh import make_mesh, to_global
from jaxvid.core.rng import named
from jaxvid.core.run import RunDirectory
from jaxvid.train.loop import LoopConfig, fit
from jaxvid.train.optimizer import OptimizerConfig

ADAM = OptimizerConfig(learning_rate=3e-2, b2=0.99, epsilon=1e-15, clip_norm=None)
UP = np.array([0.0, 0.0, 1.0])


@lru_cache
def toy() -> Scene:
    return capture(toy_scene(seed=0, index=3), views=12, size=24, test_views=2)


def system(**changes):
    fits = (
        Fit("coarse", steps=60, rays=512, optimizer=ADAM),
        Fit("fine", steps=40, rays=512, resolution=(24, 24, 24), rows=8000, optimizer=ADAM),
    )
    base = Reconstruct(
        data=SceneConfig(path="unused"),
        field=VoxelGridConfig(
            resolution=(16, 16, 16), gain=20.0, shift=-1.0, initial_density=(0.0, 0.0), initial_colour=(0.0, 0.0)
        ),
        render=RenderConfig(samples=48, equal_steps=True),
        occupancy=OccupancyConfig(resolution=16, every=4),
        fits=fits,
        heldout=1,
        loop=LoopConfig(log_every=20, save_every=30),
    )  # fmt: skip
    return replace(base, **changes)


def hash_system(**changes):
    return system(
        field=HashGridConfig(levels=4, table=10, base=8, finest=32, width=16, geometry=8),
        fits=(Fit("fit", steps=20, rays=256, optimizer=ADAM),),
        **changes,
    )


def run_fits(config, steps=None):
    """States after each fit, by hand."""
    scene, state, found = toy(), None, []
    for phase in config.phases(scene):
        state = jax.jit(phase.init)(state, named(jax.random.key(0), phase.name))
        step, batches = jax.jit(phase.step), phase.batches(None)
        for number in range(steps or phase.steps):
            state, sums = step(state, next(batches), named(jax.random.key(0), phase.name, number))
        found.append((state, sums))
    return found


# --- batches -------------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_seed_and_step():
    views = toy().views["train"]
    first = RayBatches(views, 64, seed=(1, 0))
    skipped = [next(first) for _ in range(3)][-1]
    assert first.get_state() == 3
    again = next(RayBatches(views, 64, seed=(1, 0), state=2))
    other = next(RayBatches(views, 64, seed=(2, 0), state=2))
    for name in skipped:
        np.testing.assert_array_equal(skipped[name], again[name])
    assert (skipped["pixel"] != other["pixel"]).any()
    column, row = skipped["pixel"].T
    np.testing.assert_array_equal(skipped["colour"], views.images[skipped["view"], row, column])


def test_processes_share_a_batch():
    views = toy().views["train"]
    whole = next(RayBatches(views, 64, seed=(0, 0)))
    parts = [next(RayBatches(views, 64, seed=(0, 0), index=i, count=4)) for i in range(4)]
    for name in whole:
        np.testing.assert_array_equal(whole[name], np.concatenate([part[name] for part in parts]))


def test_masked_pixels_are_never_drawn():
    views = toy().views["train"]
    masks = np.random.default_rng(0).uniform(size=views.images.shape[:3]) > 0.7
    batch = next(RayBatches(replace(views, masks=masks), 2000, seed=(0, 0)))
    column, row = batch["pixel"].T
    assert masks[batch["view"], row, column].all()
    with pytest.raises(UserError, match="masks leave no pixel"):
        RayBatches(replace(views, masks=np.zeros_like(masks)), 10, seed=(0, 0))


# --- loss ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["l2", "l1", "huber"])
def test_an_empty_field_costs_what_the_object_hides(kind):
    """Before anything is there, a render is the background: the loss is that of alpha (colour - background)."""
    config = system(field=replace(system().field, shift=-1e3), occupancy=None)
    scene = toy()
    model = jax.jit(lambda key: config.phases(scene)[0].init(None, key))(jax.random.key(0))
    batch = next(RayBatches(scene.views["train"], 128, seed=(0, 0)))
    keys = jax.random.split(jax.random.key(1), 128)
    loss, sums = jax.jit(
        lambda state, batch: ray_loss(
            config,
            replace(config.fits[0], colour_loss=kind),
            scene.views["train"].cameras,
            config.model(config.frame(scene.box), state, 0),
            batch,
            keys,
        )
    )(model, batch)
    rgba = batch["colour"] / 255.0
    error = np.abs(rgba[:, 3:] * (rgba[:, :3] - 1.0))
    expected = {
        "l2": error**2,
        "l1": error,
        "huber": np.where(error < 0.1, 5 * error**2, error - 0.05),
    }
    np.testing.assert_allclose(loss, expected[kind].mean(-1), atol=1e-6)
    np.testing.assert_allclose(sums["mse"][0] / sums["mse"][1], (error**2).mean(), rtol=1e-5)


def test_random_backgrounds_are_behind_image_and_render_alike():
    """An empty field and a transparent image differ by nothing, whatever the colour behind them."""
    config = system(field=replace(system().field, shift=-1e3), background="random", occupancy=None)
    scene = toy()
    state = jax.jit(config.phases(scene)[0].init)(None, jax.random.key(0))
    batch = next(RayBatches(scene.views["train"], 256, seed=(0, 0)))
    keys = jax.random.split(jax.random.key(1), 256)
    model = config.model(config.frame(scene.box), state, 0)
    loss, _ = ray_loss(
        config,
        config.fits[0],
        scene.views["train"].cameras,
        model,
        jax.tree.map(jnp.asarray, batch),
        keys,
    )
    clear = batch["colour"][:, 3] == 0
    assert clear.sum() > 20
    np.testing.assert_allclose(np.asarray(loss)[clear], 0.0, atol=1e-12)


# --- fits ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    """One device: eight simulated ones share two cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_mesh", lambda _: None)
        return run_fits(system())


def test_a_toy_scene_is_reconstructed(fitted):
    (coarse, _), (fine, sums) = fitted
    scene, config = toy(), system()
    truth = scene.views["test"].images[0] / 255.0
    truth = truth[..., :3] * truth[..., 3:] + 1 - truth[..., 3:]
    blank = psnr(np.ones_like(truth), truth)
    found = []
    for index, state in enumerate((coarse, fine)):
        pixels = config.render_image(
            config.frame(scene.box), state, scene.views["test"].cameras, 0, fit=index
        )
        found.append(psnr(np.asarray(pixels.colour), truth))
    assert found[0] > blank + 3
    assert found[1] > found[0]
    assert float(sums["lost_voxels"][0]) == 0


def test_packing_changes_no_pixel_to_speak_of(fitted):
    """The packed grid renders what the interpolated dense grid did: what was left out was empty."""
    scene, dense = toy(), system()
    dense = replace(dense, fits=(dense.fits[0], replace(dense.fits[1], rows=None)))
    images = []
    for config in (system(), dense):
        state = jax.jit(config.phases(scene)[1].init)(fitted[0][0], jax.random.key(0))
        model = config.model(config.frame(scene.box), state)
        assert isinstance(model.field, PackedGrid) == (config is not dense)
        pixels = config.render_image(config.frame(scene.box), state, scene.views["test"].cameras, 0)
        images.append(np.asarray(pixels.colour))
    assert np.abs(images[0] - images[1]).max() < 0.02


def test_only_rows_are_not_trained(fitted):
    (_, _), (fine, _) = fitted
    assert list(fine["frozen"]) == ["field/row"]
    assert set(fine["trainable"]) == {"field/density_values", "field/colour_values"}


@pytest.mark.parametrize("changes", [
    {"field": HashGridConfig(levels=4, table=10, base=8, finest=32, width=16, geometry=8)},
    {"field": HashGridConfig(levels=4, table=10, base=8, finest=32, width=16, geometry=8), "occupancy": None,
     "proposals": (HashGridConfig(levels=2, table=8, base=4, finest=16, width=8, geometry=1),),
     "render": RenderConfig(samples=16, proposal_samples=(32,))},
])  # fmt: skip
def test_hash_grids_learn_too(changes, monkeypatch):
    monkeypatch.setattr(training, "make_mesh", lambda _: None)
    steps = 60
    config = system(
        **changes, fits=(Fit("fit", steps=steps, rays=512, distortion=1e-3, optimizer=ADAM),)
    )
    phase = config.phases(toy())[0]
    state = jax.jit(phase.init)(None, jax.random.key(0))
    step, batches, psnrs = jax.jit(phase.step), phase.batches(None), []
    for number in range(steps):
        state, sums = step(state, next(batches), named(jax.random.key(0), number))
        psnrs.append(float(sums["psnr"][0]))
    assert np.mean(psnrs[-5:]) > np.mean(psnrs[:5]) + 5


def test_eight_devices_take_the_step_of_one(monkeypatch):
    """Adam's first moments after one step are the gradients."""
    scene, config, found = toy(), system(), []
    batch = next(RayBatches(scene.views["train"], 512, seed=(0, 0)))
    for mesh in (make_mesh(config.mesh), None):
        monkeypatch.setattr(training, "make_mesh", lambda _, mesh=mesh: mesh)
        phase = config.phases(scene)[0]
        state = jax.jit(phase.init)(None, jax.random.key(0))
        step = jax.jit(phase.step)
        state, sums = step(state, to_global(mesh, batch), jax.random.key(3))
        found.append((state["optimizer"], sums["loss"]))
    np.testing.assert_allclose(found[0][1][0], found[1][1][0], rtol=1e-6)
    for a, b in zip(*(jax.tree.leaves(optimizer) for optimizer, _ in found), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path):
    states = []
    for stop in (None, 13):
        config = hash_system(loop=LoopConfig(log_every=10, save_every=10))
        run, mesh = RunDirectory.open(tmp_path / str(stop), config), make_mesh(config.mesh)
        if stop is not None:
            stopped = replace(config.loop, max_steps=stop)
            fit(run, config.phases(toy()), stopped, mesh=mesh)
        states.append(fit(run, config.phases(toy()), config.loop, mesh=mesh))
    for a, b in zip(jax.tree.leaves(states[0]), jax.tree.leaves(states[1]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_settings_that_contradict_each_other():
    with pytest.raises(UserError, match="which only a voxel grid has"):
        system(field=HashGridConfig())
    with pytest.raises(UserError, match="last_opaque needs every sample"):
        system(render=RenderConfig(samples=48, last_opaque=True))
    with pytest.raises(UserError, match="an occupancy grid is for a box"):
        system(contraction="linf")
    with pytest.raises(UserError, match="which sees nothing outside"):
        system(contraction="linf", occupancy=None)
    with pytest.raises(UserError, match="give one each"):
        system(render=RenderConfig(proposal_samples=(8,)))


# --- scores --------------------------------------------------------------------------------------


def test_psnr_of_known_errors():
    truth = np.zeros((4, 4, 3))
    np.testing.assert_allclose(psnr(truth + 0.1, truth), 20.0)
    mask = np.zeros((4, 4), bool)
    mask[0] = True
    half = truth.copy()
    half[0] = 0.01
    np.testing.assert_allclose(psnr(half, truth, mask), 40.0)
    assert psnr(truth, truth) == np.inf
    assert np.isnan(psnr(truth, truth, np.zeros((4, 4), bool)))


def test_ssim_is_its_definition():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(size=(2, 16, 14, 3))
    offset = np.arange(11) - 5
    window = np.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for c in range(3):
        for i in range(6):
            for j in range(4):
                a, b = x[i : i + 11, j : j + 11, c], y[i : i + 11, j : j + 11, c]
                ma, mb = (window * a).sum(), (window * b).sum()
                va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
                cov = (window * (a - ma) * (b - mb)).sum()
                values.append(
                    (2 * ma * mb + 1e-4)
                    * (2 * cov + 9e-4)
                    / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
                )
    found = ssim(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(found, np.mean(values), rtol=1e-4)
    np.testing.assert_allclose(
        ssim(jnp.asarray(x, jnp.float32), jnp.asarray(x, jnp.float32)), 1.0, rtol=1e-5
    )


# --- paths ---------------------------------------------------------------------------------------


def ring(count=8, height=1.0, radius=3.0, target=(0.2, -0.1, 0.3)):
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    target = np.array(target)
    position = target + np.stack(
        [radius * np.cos(angle), radius * np.sin(angle), height + 0 * angle], -1
    )
    return look_at(position, target, UP)


def test_the_focus_is_where_the_axes_meet():
    np.testing.assert_allclose(focus_of(ring()), [0.2, -0.1, 0.3], atol=1e-9)
    parallel = look_at(np.array([[0.0, -5, 0], [1.0, -5, 0]]), np.array([0.0, 1e9, 0]), UP)
    np.testing.assert_allclose(focus_of(parallel), [0.5, -4, 0], atol=1e-6)


def test_a_turntable_goes_once_around_at_its_height():
    path = turntable(ring(), 12)
    offset = path[:, :, 3] - focus_of(ring())
    np.testing.assert_allclose(offset[:, 2], 1.0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(offset, axis=-1), np.hypot(3, 1), atol=1e-6)
    turned = np.unwrap(np.arctan2(offset[:, 1], offset[:, 0]))
    np.testing.assert_allclose(np.diff(turned), 2 * np.pi / 12, atol=1e-6)
    np.testing.assert_allclose(focus_of(path), focus_of(ring()), atol=1e-6)
    high = turntable(ring(), 4, elevation=90.0, radius=2.0)
    np.testing.assert_allclose(
        high[:, :, 3] * np.ones((4, 1)),
        np.ones((4, 1)) * focus_of(ring()) + np.array([[0, 0, 2.0]]),
        atol=1e-6,
    )


def test_a_spiral_stays_among_the_cameras_and_looks_at_their_focus():
    rng = np.random.default_rng(0)
    position = np.stack([rng.uniform(-1, 1, 20), np.full(20, -5.0), rng.uniform(-0.5, 0.5, 20)], -1)
    poses = look_at(position, np.zeros(3), UP)
    path = spiral(poses, 40)
    assert np.abs(path[:, 0, 3]).max() <= 1.2
    np.testing.assert_allclose(focus_of(path), 0, atol=1e-3)


def test_key_frames_are_passed_through():
    keys = ring(4)
    path = through(keys, 31)
    np.testing.assert_allclose(path[::10], keys, atol=1e-9)
    closed = through(keys, 40, closed=True)
    np.testing.assert_allclose(closed[::10], keys, atol=1e-9)
    step = np.linalg.norm(np.diff(np.concatenate([closed, closed[:1]])[:, :, 3], axis=0), axis=-1)
    assert step.max() < 1.5 * step.min()
    with pytest.raises(UserError, match="2 key frames"):
        through(keys[:1], 10)


# --- the command line ----------------------------------------------------------------------------


def test_records_survive_json(tmp_path):
    record = SceneRecord.of(toy())
    write_record(record, tmp_path / "scene.json")
    back = read_record(tmp_path / "scene.json")
    np.testing.assert_array_equal(back.box, record.box)
    for split, cameras in record.cameras.items():
        for a, b in zip(
            jax.tree.leaves(cameras), jax.tree.leaves(back.cameras[split]), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    (tmp_path / "scene.json").write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        read_record(tmp_path / "scene.json")


def write_blender(folder, scene):
    for split, views in scene.views.items():
        frames = []
        for i, image in enumerate(views.images):
            (folder / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / split / f"r_{i}.png")
            pose = np.concatenate([np.asarray(views.cameras.pose[i]), [[0, 0, 0, 1]]])
            frames.append({"file_path": f"./{split}/r_{i}", "transform_matrix": pose.tolist()})
        angle = 2 * np.arctan(views.cameras.width / 2 / float(views.cameras.focal[0, 0]))
        text = json.dumps({"camera_angle_x": angle, "frames": frames})
        (folder / f"transforms_{split}.json").write_text(text)


@pytest.fixture(scope="module")
def commanded(tmp_path_factory):
    """A toy scene on disk, fitted by the command line."""
    folder = tmp_path_factory.mktemp("fit")
    write_blender(folder / "toy", toy())
    (folder / "tiny.py").write_text(CONFIG)
    code = cli.main(
        [
            "fit",
            str(folder / "toy"),
            "--config",
            str(folder / "tiny.py"),
            "--run",
            str(folder / "run"),
        ]
    )
    assert code == 0
    return folder


CONFIG = """
from jaxedit.fields.voxel_grid import VoxelGridConfig
from jaxedit.render.render import RenderConfig
from jaxedit.scene.load import SceneConfig
from jaxedit.systems.reconstruct import Fit, Reconstruct, training
from jaxvid.train.loop import LoopConfig


def config():
    return Reconstruct(
        data=SceneConfig(path="unset"),
        field=VoxelGridConfig(resolution=(8, 8, 8), gain=20.0),
        render=RenderConfig(samples=16),
        fits=(Fit(steps=3, rays=64),),
        heldout=1,
        loop=LoopConfig(log_every=1, save_every=2),
    )
"""


def test_fit_leaves_a_run_that_says_what_it_is(commanded, capsys):
    run = commanded / "run"
    assert (run / "samples" / "step_00000003.png").exists()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("test/psnr" in line for line in lines)
    assert any("psnr" in line for line in lines)
    saved = load_fitted(run)
    assert (saved.system.render.near, saved.system.render.far) == (2.0, 6.0), "the scene's"
    again = [
        "fit",
        str(commanded / "toy"),
        "--config",
        str(commanded / "tiny.py"),
        "--run",
        str(run),
    ]
    assert cli.main(again) == 0
    assert "test: PSNR" in capsys.readouterr().out
    assert cli.main([*again, "--render.samples", "24"]) == 2
    assert "choose another --run" in capsys.readouterr().err


def test_a_batch_without_an_error_is_no_breakdown(monkeypatch):
    monkeypatch.setattr(training, "make_mesh", lambda _: None)
    config = system(field=replace(system().field, shift=-1e3), occupancy=None)
    phase = config.phases(toy())[0]
    state = jax.jit(phase.init)(None, jax.random.key(0))
    batch = {name: values.copy() for name, values in next(phase.batches(None)).items()}
    batch["colour"][:, 3] = 0
    _, sums = jax.jit(phase.step)(state, batch, jax.random.key(1))
    np.testing.assert_allclose(sums["psnr"][0], 100.0)


def test_a_run_cut_short_in_its_first_fit_is_scored_as_such(commanded, capsys):
    text = CONFIG.replace(
        "fits=(Fit(steps=3, rays=64),)",
        'fits=(Fit("a", steps=3, rays=64), Fit("b", steps=3, rays=64, resolution=(12, 12, 12)))',
    )
    (commanded / "two.py").write_text(text)
    call = ["fit", str(commanded / "toy"), "--config", str(commanded / "two.py"), "--run"]
    assert cli.main([*call, str(commanded / "short"), "--loop.max-steps", "2"]) == 0
    assert "test: PSNR" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["colour", "depth", "normal"])
def test_render_writes_pictures_and_videos(commanded, kind, capsys):
    out = commanded / f"{kind}.mp4"
    options = ["--frames", "3", "--kind", kind]
    assert cli.main(["render", str(commanded / "run"), "--out", str(out), *options]) == 0
    assert out.stat().st_size > 500
    folder = commanded / f"{kind}_views"
    assert (
        cli.main(
            [
                "render",
                str(commanded / "run"),
                "--out",
                str(folder),
                "--path",
                "views",
                "--kind",
                kind,
            ]
        )
        == 0
    )
    assert sorted(path.name for path in folder.iterdir()) == ["r_0.png", "r_1.png"]
    assert Image.open(folder / "r_0.png").size == (24, 24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x.avi"], "--out is x.avi"),
        (["--out", "x.mp4", "--frames", "0"], "--frames is 0"),
        (["--out", "x.mp4", "--path", "circle"], "--path circle: no such file"),
        (["--out", "x.mp4", "--path", "views", "--split", "val"], "--split is val; the scene has"),
        (["--out", "x.mp4", "--size", "0"], "--size is 0"),
        (["--out", "x.mp4", "--kind", "z"], "invalid choice: 'z'"),
    ],
)
def test_render_refuses(commanded, options, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["render", str(commanded / "run"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_key_frames_are_read_and_refused(commanded, tmp_path, capsys):
    keys = [np.concatenate([pose, [[0, 0, 0, 1]]]).tolist() for pose in ring(3)]
    (tmp_path / "keys.json").write_text(json.dumps({"keys": keys, "closed": True}))
    call = [
        "render",
        str(commanded / "run"),
        "--path",
        str(tmp_path / "keys.json"),
        "--frames",
        "2",
        "--out",
    ]
    assert cli.main([*call, str(tmp_path / "frames")]) == 0
    capsys.readouterr()
    for bad in (
        "{}",
        "[1]",
        '{"keys": [[[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]]]}',
        '{"keys": 3}',
        '{"keys": [[[-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]]}',
    ):
        (tmp_path / "keys.json").write_text(bad)
        assert cli.main([*call, str(tmp_path / "other")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "other").exists()
