"""Reconstruction: batches, the loss's closed forms, fits of a toy scene, resuming, devices."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_fits import ADAM, hash_system, run_fits, system, toy

from jaxedit.evaluate import psnr
from jaxedit.fields.hash_grid import HashGridConfig
from jaxedit.fields.packed_grid import PackedGrid, unpack
from jaxedit.fields.voxel_grid import activate, raw_of
from jaxedit.render.occupancy import UNKNOWN, OccupancyConfig
from jaxedit.render.render import RenderConfig
from jaxedit.scene.cameras import pixel_rays
from jaxedit.systems.reconstruct import Fit, training
from jaxedit.systems.reconstruct import system as system_module
from jaxedit.systems.reconstruct.batches import RayBatches
from jaxedit.systems.reconstruct.model import grown
from jaxedit.systems.reconstruct.report import truth_of
from jaxedit.systems.reconstruct.training import ray_loss
from jaxvid.core.errors import UserError
from jaxvid.core.mesh import make_mesh, to_global
from jaxvid.core.rng import named
from jaxvid.core.run import RunDirectory
from jaxvid.train.loop import LoopConfig, fit

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


def test_a_fit_on_smaller_images_sees_their_area_means():
    config = system(fits=(replace(system().fits[0], shrink=2),))
    batch = next(config.phases(toy())[0].batches(None))
    assert batch["pixel"].max() == 11
    images = toy().views["train"].images.astype(np.float64) / 255
    weighted = images * np.where(np.arange(4) < 3, images[..., 3:], 1.0)
    means = weighted.reshape(12, 12, 2, 12, 2, 4).mean(axis=(2, 4))
    column, row = batch["pixel"].T
    found = batch["colour"] / 255.0
    found[:, :3] *= found[:, 3:]
    np.testing.assert_allclose(found, means[batch["view"], row, column], atol=1.5 / 255)


def test_smaller_views_count_whole_pixels():
    views = toy().views["test"]
    masks = np.ones(views.images.shape[:3], bool)
    masks[:, 5, 7] = False
    small = replace(views, masks=masks).resized(12, 12)
    assert np.argwhere(~small.masks[0]).tolist() == [[2, 3]]
    np.testing.assert_allclose(small.cameras.focal, views.cameras.focal / 2)


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


def sums_of(changes, losses):
    """Mean loss of a batch in a field of fog, without jitter's change between calls."""
    config = system(occupancy=None, **changes)
    scene = toy()
    frame = config.frame(scene.box)
    state = jax.jit(config.phases(scene)[0].init)(None, jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, next(RayBatches(scene.views["train"], 64, seed=(0, 0))))
    keys = jax.random.split(jax.random.key(1), 64)
    fit = replace(config.fits[0], **losses)
    cameras = scene.views["train"].cameras
    model = config.model(frame, state, 0)
    loss, _ = ray_loss(config, fit, cameras, model, batch, keys)
    pixel = batch["pixel"].astype(jnp.float32) + 0.5
    rays = pixel_rays(cameras, batch["view"], pixel)
    return np.asarray(loss), training.render(config, model, rays, keys)[1]


def test_the_losses_of_sampling_are_added_with_their_weights():
    proposals = {
        "proposals": (
            HashGridConfig(
                levels=2, table=8, base=4, finest=16, width=8, geometry=1, density_bias=-3.0
            ),
        ),
        "render": RenderConfig(samples=16, proposal_samples=(8,)),
    }
    for changes in ({}, proposals):
        plain, losses = sums_of(changes, {"distortion": 0.0, "interlevel": 0.0})
        added, _ = sums_of(changes, {"distortion": 0.5, "interlevel": 3.0})
        expected = 0.5 * losses["distortion"] + 3.0 * losses.get("interlevel", 0.0)
        assert float(jnp.max(losses["distortion"])) > 1e-3
        np.testing.assert_allclose(added - plain, expected, rtol=1e-4, atol=1e-7)
    assert float(jnp.max(losses["interlevel"])) > 0


# --- fits ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    """One device: eight simulated ones share two cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_mesh", lambda _: None)
        return run_fits(system())


def test_a_toy_scene_is_reconstructed(fitted):
    (coarse, _), (fine, _) = fitted
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


def test_rows_that_are_too_few_are_named_before_the_fit(tmp_path):
    """The run stands at the end of the fit before, and goes on once the number is right."""
    config = system(fits=tuple(replace(fit, steps=4) for fit in system().fits))
    few = replace(config, fits=(config.fits[0], replace(config.fits[1], rows=100)))
    run, mesh = RunDirectory.open(tmp_path / "run", config), make_mesh(config.mesh)
    with pytest.raises(
        UserError, match=r"fits.1.rows is 100, and \d+ voxels may hold matter: set"
    ) as refused:
        fit(run, few.phases(toy()), few.loop, mesh=mesh)
    needed = int(str(refused.value).split("and ")[1].split()[0])
    enough = replace(config, fits=(config.fits[0], replace(config.fits[1], rows=needed)))
    run = RunDirectory.open(tmp_path / "run", config)
    state = fit(run, enough.phases(toy()), enough.loop, mesh=mesh)
    assert state["trainable"]["field/density_values"].shape == (needed, 1)
    steps = [
        json.loads(line)["step"] for line in (run.path / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(steps)
    assert steps[-1] == 8


def test_a_fit_goes_on_from_a_given_state(fitted):
    (coarse, _), _ = fitted
    first = system().phases(toy())[0]
    begun = jax.jit(first.init)(coarse, jax.random.key(5))
    for path, leaf in coarse["trainable"].items():
        np.testing.assert_array_equal(begun["trainable"][path], leaf)
    assert int(begun["extra"]["updates"]) == 0
    with pytest.raises(UserError, match="start from a state of the first fit's form"):
        first.init(fitted[1][0], jax.random.key(5))


def test_voxels_that_were_left_out_can_fill_again(fitted):
    """Unpacked and made finer, what was empty is all but empty, and has a slope to grow on."""
    (coarse, _), _ = fitted
    fits = (*system().fits, Fit("finest", steps=1, rays=64, resolution=(32, 32, 32), rows=33_000))
    config = system(fits=fits)
    scene = toy()
    frame = config.frame(scene.box)
    fine = jax.jit(config.phases(scene)[1].init)(coarse, jax.random.key(0))
    whole = unpack(config.model(frame, fine, 1).field, raw_of(1e-2, config.field, frame))
    empty = np.asarray(config.model(frame, fine, 1).field.row[...]) == -1
    np.testing.assert_allclose(
        activate(whole.density_values[...][empty], config.field, frame), 1e-2, rtol=1e-3
    )
    finest, lost = grown(config, 2, config.model(frame, fine, 1).field)
    assert int(lost) == 0
    values = finest.density_values[...]
    assert float(values.min()) > -1.0, "no value so low that it never comes back"


def test_annealing_counts_the_runs_steps(monkeypatch):
    """Not each fit's: a second fit with its proposals learnt would begin blind."""
    seen = []

    def spy(config, fit, cameras, model, batch, keys, look, **options):
        seen.append(look.anneal)
        return jnp.zeros(4), {"mse": (jnp.ones(()), jnp.ones(()))}

    monkeypatch.setattr(training, "ray_loss", spy)
    monkeypatch.setattr(training, "make_mesh", lambda _: None)
    config = hash_system(anneal=40)
    config = replace(config, fits=tuple(replace(config.fits[0], name=name) for name in "abc"))
    state = None
    for phase, begin in zip(config.phases(toy()), (0.0, 0.5, 1.0), strict=True):
        state = phase.init(state, jax.random.key(0))
        phase.step(state, next(phase.batches(None)), jax.random.key(0))
        assert abs(float(np.asarray(seen[-1])) - begin) < 1e-6
        state["extra"]["updates"] = jnp.int32(phase.steps)


def test_the_occupancy_grid_is_kept_while_training(monkeypatch):
    monkeypatch.setattr(training, "make_mesh", lambda _: None)
    config = system(occupancy=OccupancyConfig(resolution=16, every=2, parts=2))
    phases = config.phases(toy())
    state = jax.jit(phases[0].init)(None, jax.random.key(0))
    step, batches, unknown = jax.jit(phases[0].step), phases[0].batches(None), []
    for number in range(5):
        unknown.append(int(np.sum(state["extra"]["level"] == UNKNOWN)))
        state, _ = step(state, next(batches), named(jax.random.key(0), number))
    assert unknown == [4096, 4096, 2048, 2048, 0]
    again = replace(config, fits=(config.fits[0], replace(config.fits[0], name="again")))
    carried = again.phases(toy())[1].init(state, jax.random.key(1))
    np.testing.assert_array_equal(carried["extra"]["level"], state["extra"]["level"])
    frame = config.frame(toy().box)
    np.testing.assert_allclose(training.step_length(config, frame) * 48, np.linalg.norm(frame.size))


def test_an_image_over_eight_devices_is_that_of_one(fitted, monkeypatch):
    scene, (_, (fine, _)) = toy(), fitted
    config, images = system(), []
    # 30 x 24 pixels at 8 x 50 rays: neither divides the other.
    cameras = scene.views["test"].cameras.resized(30, 24)
    for mesh in (None, make_mesh(config.mesh)):
        monkeypatch.setattr(system_module, "make_mesh", lambda _, mesh=mesh: mesh)
        one = replace(config, chunk=50)
        images.append(one.render_image(config.frame(scene.box), fine, cameras, 0))
    assert len(images[1].colour.sharding.device_set) == 8
    for a, b in zip(*images, strict=True):
        assert a.shape[:2] == (24, 30)
        assert np.linalg.norm(a - b) <= 1e-6 * np.linalg.norm(a)


def test_reports_are_of_their_own_fit(fitted, tmp_path):
    """The coarse state reported as coarse; as fine it would not even have the fine one's arrays."""
    config = system()
    for index, phase in enumerate(config.phases(toy(), with_reports=True)):
        run = RunDirectory.open(tmp_path / str(index), config)
        phase.report(fitted[index][0], 1, run)
        line = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[-1])
        frame, views = config.frame(toy().box), toy().views["test"]
        pixels = config.render_image(frame, fitted[index][0], views.cameras, 0, fit=index)
        expected = psnr(np.asarray(pixels.colour), truth_of(views, 0, "white"))
        np.testing.assert_allclose(line["test/psnr"], expected, rtol=1e-4)


def test_settings_that_contradict_each_other():
    with pytest.raises(UserError, match="which only a voxel grid has"):
        system(field=HashGridConfig())
    with pytest.raises(UserError, match="last_opaque needs every sample"):
        system(render=RenderConfig(samples=48, last_opaque=True))
    with pytest.raises(UserError, match="only linear goes with an occupancy grid"):
        system(render=RenderConfig(samples=48, spacing="disparity", near=1.0))
    with pytest.raises(UserError, match="an occupancy grid is for a box"):
        system(contraction="linf")
    with pytest.raises(UserError, match="which sees nothing outside"):
        system(contraction="linf", occupancy=None)
    with pytest.raises(UserError, match="give one each"):
        system(render=RenderConfig(proposal_samples=(8,)))
