"""The driver: one compile for every sweep, the same numbers however a run is divided, hooks and progress in order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_truth import plane

from jaxvid.core.errors import UserError
from jaxvid.diffusion import driver, grid, guidance, reconstruction, samplers
from jaxvid.diffusion.schedule import Cosine
from jaxvid.diffusion.types import Prediction

KEY = jax.random.key(0)
PLANE = plane()
Z = jax.random.normal(jax.random.key(1), (3, 2, 1))
SAMPLERS = {
    "ancestral": samplers.ancestral(0.3),
    "ddim": samplers.ddim(),
    "ddim eta": samplers.ddim(0.5),
    "predictor-corrector": samplers.predictor_corrector(),
    "dpm-solver++ 2m": samplers.dpm_solver_2m(),
    "heun": samplers.heun(),
}
every = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())


class Compiles:
    """Counts programs handed to the compiler (also those that a persistent cache then answers)."""

    def __enter__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._event)
        return self

    def _event(self, name, duration, **unused):
        self.count += name == "/jax/core/compile/backend_compile_duration"

    def __exit__(self, *unused):
        jax.monitoring.unregister_event_duration_listener(self._event)


@every
def test_a_sweep_over_everything_compiles_once(sampler):
    traces = []

    def make_denoise(args):
        traces.append(1)

        def conditional(z, level, shift):
            prediction = PLANE.denoise(z, level)
            return prediction._replace(x=args["params"] * prediction.x + shift[:, None, None])

        scale = guidance.oscillating(args["scale"], args["low"], args["constant"])
        scale = guidance.in_step_interval(scale, args["start"], 1.0)
        table = guidance.classifier_free(args["shift"], 0.0 * args["shift"], scale)
        return guidance.dynamic_threshold(
            guidance.guided(conditional, table, rescale=args["phi"]), args["fraction"]
        )

    def make_hook(args):
        return reconstruction.replacement(Z, args["known"])

    run = driver.program(sampler, make_denoise, make_hook)

    def call(steps, levels=None, key=0, chunk=None, **changes):
        args = {
            "params": jnp.ones(()),
            "shift": jnp.full((3,), 0.1),
            "known": jnp.asarray([[True, False]] * 3),
            "scale": 3.0,
            "low": 1.0,
            "constant": 2,
            "start": 0.0,
            "phi": 0.0,
            "fraction": 0.9,
        }
        levels = grid.uniform(Cosine(), steps) if levels is None else levels
        return run(args | changes, Z, levels, jax.random.key(key), chunk=chunk)

    first = call(5)
    compiled = len(traces)
    assert compiled <= 2  # the loop body may be traced twice for one compile
    elsewhere = [grid.karras(9), np.linspace(-4, 4, 20), grid.uniform_logsnr(-5.0, 5.0, 30)]
    with Compiles() as compiles:
        results = [call(7, levels) for levels in elsewhere]
        results += [
            call(5, scale=s, phi=p, fraction=f) for s, p, f in ((9.0, 0.5, 0.99), (1.0, 1.0, 0.5))
        ]
        results += [call(5, constant=4, low=0.5, start=0.3), call(5, chunk=2), call(5, key=1)]
    assert len(traces) == compiled
    assert compiles.count <= 3, (
        compiles.count
    )  # grids make small programs of their own, the sampler none
    assert all(np.isfinite(r).all() for r in results)
    assert np.abs(results[3] - first).max() > 1e-4  # the values did arrive
    assert (results[6] == first).all()
    assert np.abs(results[7] - first).max() > 1e-4


@pytest.mark.parametrize("name", ["ancestral", "predictor-corrector", "dpm-solver++ 2m"])
def test_scan_and_program_agree_however_the_run_is_divided(name):
    sampler = SAMPLERS[name]
    levels = grid.uniform(Cosine(), 6)
    run = driver.program(sampler, lambda _: PLANE.denoise)
    whole = run((), Z, levels, KEY)
    for chunk in (1, 4, 100):
        assert (run((), Z, levels, KEY, chunk=chunk) == whole).all()
    scanned = jax.jit(lambda z: driver.scan(sampler, PLANE.denoise, z, jnp.asarray(levels), KEY))(Z)
    np.testing.assert_allclose(scanned, whole, rtol=1e-5, atol=1e-5)


def test_progress_comes_from_the_host_with_previews():
    calls = []
    levels = np.array([-3.0, -1.0, 0.0, 1.0, 2.0, np.inf])
    got = driver.sample(
        samplers.ddim(),
        PLANE.denoise,
        Z,
        levels,
        KEY,
        chunk=2,
        progress=lambda done, total, x: calls.append((done, total, np.asarray(x))),
    )
    assert [c[:2] for c in calls] == [(2, 5), (4, 5), (5, 5)]
    assert all(c[2].shape == Z.shape for c in calls)
    np.testing.assert_array_equal(calls[-1][2], got)  # at the clean end the sample is the estimate
    calls.clear()
    driver.sample(
        samplers.ddim(), PLANE.denoise, Z, levels, KEY, progress=lambda *c: calls.append(c)
    )
    assert [c[0] for c in calls] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("scanned", [True, False])
def test_hooks_see_every_level_and_their_result_stands(scanned):
    seen = []

    def hook(z, level, key):
        jax.debug.callback(
            lambda logsnr, step: seen.append((float(logsnr[0]), int(step))),
            level.logsnr,
            level.step,
            ordered=True,
        )
        return z.at[:, 0].set(5.0)

    def denoise(z, level):
        jax.debug.callback(lambda z: seen.append(float(z.mean(0)[0, 0])), z, ordered=True)
        return Prediction(0.0 * z)

    levels = np.array([-2.0, 0.0, 1.0, np.inf], np.float32)
    call = driver.scan if scanned else driver.sample
    got = call(samplers.ddim(), denoise, Z, jnp.asarray(levels), KEY, hook=hook)
    jax.effects_barrier()
    assert seen == [(-2.0, 0), 5.0, (0.0, 0), 5.0, (1.0, 1), 5.0, (np.inf, 2)]
    assert (got[:, 0] == 5.0).all()


def test_the_corrector_evaluates_what_the_hook_left():
    seen = []

    def denoise(z, level):
        jax.debug.callback(lambda first: seen.append(np.asarray(first)), z[:, 0], ordered=True)
        return Prediction(0.5 * z)

    levels = jnp.asarray([-2.0, 0.0, 1.0, jnp.inf])
    hook = reconstruction.replacement(jnp.full(Z.shape, 5.0), jnp.asarray([[True, False]] * 3))
    sampler = samplers.predictor_corrector(1.0, 0.1)
    driver.scan(sampler, denoise, Z, levels + 20.0, KEY, hook=hook)
    jax.effects_barrier()
    assert len(seen) == 5
    np.testing.assert_allclose(
        seen, 5.0, atol=0.01
    )  # at log-SNR 18 and up the known parts are clean


def test_sample_compiles_once_for_one_denoiser():
    traces = []

    def denoise(z, level):
        traces.append(1)
        return PLANE.denoise(z, level)

    for steps in (4, 6, 9):
        driver.sample(samplers.ddim(), denoise, Z, np.linspace(-3, 3, steps), KEY)
        if steps == 4:
            compiled = len(traces)
    assert len(traces) == compiled


def test_longer_grids_than_the_capacity_still_run():
    levels = np.linspace(-6.0, 6.0, driver.CAPACITY + 100)
    got = driver.sample(samplers.ddim(), PLANE.denoise, Z, levels, KEY)
    np.testing.assert_allclose(got, PLANE.flow(np.asarray(Z), -6.0, 6.0), atol=5e-3)


def test_keys_decide_and_steps_have_their_own():
    levels = grid.uniform(Cosine(), 4)
    run = driver.program(samplers.ancestral(), lambda _: PLANE.denoise)
    assert (run((), Z, levels, KEY) == run((), Z, levels, KEY)).all()
    assert np.abs(run((), Z, levels, jax.random.key(9)) - run((), Z, levels, KEY)).max() > 1e-3

    # with x = 0 one step is a multiple of its noise; the second step's must not be the first's again
    def still(z, level):
        return Prediction(0.0 * z)

    levels = jnp.asarray([0.0, 1.0, 2.0])
    sampler = samplers.ancestral(1.0)
    one, two = (driver.scan(sampler, still, 0.0 * Z, levels[:n], KEY) for n in (2, 3))
    assert np.std(np.asarray(two) / np.asarray(one)) > 0.1


def test_a_batch_sharded_over_devices_stays_so_and_gives_the_same():
    devices = np.array(jax.devices()[:4])
    mesh = jax.sharding.Mesh(devices, ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    z = jax.random.normal(jax.random.key(2), (8, 2, 1))
    shift = jnp.linspace(-1.0, 1.0, 8)

    def make_denoise(args):
        def conditional(z, level, shift):
            prediction = PLANE.denoise(z, level)
            return prediction._replace(x=prediction.x + shift[:, None, None])

        return guidance.guided(conditional, guidance.classifier_free(args, 0.0 * args, 2.0))

    run = driver.program(samplers.dpm_solver_2m(), make_denoise)
    levels = grid.uniform(Cosine(), 8)
    alone = run(shift, z, levels, KEY)
    spread = run(jax.device_put(shift, sharding), jax.device_put(z, sharding), levels, KEY)
    assert spread.sharding.is_equivalent_to(sharding, z.ndim)
    np.testing.assert_allclose(spread, alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["predictor-corrector", "ddim eta"])
def test_a_denoiser_in_half_precision_is_sampled_in_float32(name):
    def half(z, level):
        x = PLANE.denoise(z, level).x.astype(jnp.bfloat16)
        return Prediction(x, jnp.full(x.shape, 0.5, jnp.bfloat16))

    got = driver.program(SAMPLERS[name], lambda _: half)(
        (), Z.astype(jnp.bfloat16), grid.karras(5), KEY
    )
    assert got.dtype == jnp.float32
    assert np.isfinite(got).all()


def test_bad_input_is_refused_before_anything_runs():
    for bad in (np.zeros(1), np.array([1.0, 0.0]), np.array([np.nan, 1.0])):
        with pytest.raises(UserError):
            driver.sample(samplers.ddim(), PLANE.denoise, Z, bad, KEY)
    with pytest.raises(UserError, match="chunk"):
        driver.sample(samplers.ddim(), PLANE.denoise, Z, np.array([0.0, 1.0]), KEY, chunk=0)
