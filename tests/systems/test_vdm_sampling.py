"""Sampling from text, around known frames and from low resolution; and the canvas of longer clips."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_vdm import DATA, parameters, system

from jaxvid.core.errors import UserError
from jaxvid.diffusion.reconstruction import area
from jaxvid.systems.vdm import Known, Sampling, sampling

KEY = jax.random.key(4)
PLAIN = system(target="v")
TEXT = system(text=True, target="v", data=replace(DATA, skips=(1, 4)))


def weak(config):
    """Values by which estimates of the clean clip stay within [-1, 1], where no threshold touches them."""
    values = parameters(config)
    values["unet/head/kernel"] = values["unet/head/kernel"] * np.float32(0.1)
    return {path: jnp.asarray(leaf) for path, leaf in values.items()}


@pytest.fixture(scope="module")
def traces():
    """How often the network has been traced."""
    counted, network = [], sampling.network_denoise

    def counting(*args, **options):
        counted.append(1)
        return network(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "network_denoise", counting)
        yield counted


# Text

PROMPTS = ["red circle", "blue square"]


@pytest.fixture(scope="module")
def draw(traces):
    """Two clips by prompts and settings; one step leads from noise straight to the estimate."""
    params = weak(TEXT)

    def run(prompts=(), *, key=KEY, skip=None, **changes):
        chosen = replace(TEXT.sampling, threshold="dynamic", **{"steps": 1, **changes})
        video = TEXT.sample(params, key, prompts, count=2, sampling=chosen, skip=skip)
        assert video.shape == (2, 4, 8, 8, 3)
        return np.asarray(video)

    return run


def test_guidance_is_the_line_through_conditional_and_unconditional(draw):
    conditional, unconditional = draw(PROMPTS), draw()
    assert 0.05 < np.abs(conditional).max() < 0.5
    assert np.abs(conditional - unconditional).max() > 1e-3
    for scale in (0.0, 2.0, 3.0):
        expected = scale * conditional + (1 - scale) * unconditional
        np.testing.assert_allclose(draw(PROMPTS, guidance=scale), expected, atol=1e-5)
    # Scale 1 is the model without guidance, which is another program.
    np.testing.assert_allclose(draw(PROMPTS, guidance=1.000001), conditional, atol=1e-5)


def test_every_clip_has_its_own_prompt(draw):
    both = draw(PROMPTS, guidance=2.0)
    other = draw([PROMPTS[0], "blue circle"], guidance=2.0)
    np.testing.assert_array_equal(other[0], both[0])
    assert np.abs(other[1] - both[1]).max() > 1e-3


def test_the_frame_rate_is_a_condition(draw):
    np.testing.assert_array_equal(draw(skip=1), draw())
    assert np.abs(draw(skip=4) - draw()).max() > 1e-3
    with pytest.raises(UserError, match=r"skip is 3; .*\(1, 4\)"):
        draw(skip=3)


def test_a_sweep_compiles_nothing(draw, traces):
    draw(PROMPTS, guidance=2.0)
    before = len(traces)
    clips = [
        draw(prompts, steps=steps, guidance=guidance, percentile=percentile, key=key)
        for prompts, steps, guidance, percentile, key in [
            (PROMPTS, 1, 5.0, 0.9, KEY),
            (PROMPTS, 2, 5.0, 0.9, KEY),
            (PROMPTS, 3, 0.5, 0.5, KEY),
            (PROMPTS[::-1], 3, 0.5, 0.5, jax.random.key(9)),
        ]
    ]
    assert len(traces) == before
    assert len({clip.tobytes() for clip in clips}) == 4


# Known frames

VIDEO = jnp.asarray(0.9 * np.tanh(naive.normal(2, 4, 8, 8, 3)))
KNOWN = Known(VIDEO, jnp.asarray([[True, False, False, True], [False, True, False, False]]))


@pytest.fixture(scope="module")
def around(traces):
    params = weak(PLAIN)

    def run(**options):
        changes = {
            name: options.pop(name) for name in ("reconstruction", "steps") if name in options
        }
        chosen = replace(PLAIN.sampling, **changes)
        return np.asarray(PLAIN.sample(params, KEY, count=2, sampling=chosen, **options))

    return run


def test_known_frames_come_back_and_guide_the_others(around):
    known = np.asarray(KNOWN.frames)
    clips = {
        "replaced": around(known=KNOWN, method="replacement"),
        "guided": around(known=KNOWN, reconstruction=40.0),
        "not guided": around(known=KNOWN, reconstruction=0.0),
    }
    for clip in clips.values():
        np.testing.assert_array_equal(clip[known], np.asarray(VIDEO)[known])
        assert np.isfinite(clip).all()
    # A weight of zero leaves replacement alone.
    np.testing.assert_allclose(clips["not guided"], clips["replaced"], atol=1e-5)
    assert np.abs(clips["guided"] - clips["replaced"])[~known].max() > 1e-4


def test_a_video_continues_and_keeps_its_frames(around, traces):
    """A real run of two windows by the program of the test above."""
    params, before = weak(PLAIN), len(traces)
    video = PLAIN.extend(params, KEY, VIDEO[:, :2], 6, overlap=2)
    assert video.shape == (2, 6, 8, 8, 3)
    np.testing.assert_array_equal(video[:, :2], VIDEO[:, :2])
    assert np.isfinite(video).all()
    assert np.abs(video[:, 2:]).min(axis=(2, 3, 4)).max() < 1
    assert len(traces) == before


# Low resolution


def test_upsampling_agrees_with_the_low_resolution():
    """The network is silent, the estimate is alpha z: guidance alone brings the clip to the low one."""
    large = system(target="v", data=replace(DATA, world=replace(DATA.world, size=16)))
    params = weak(large)
    for name in ("kernel", "bias"):
        params[f"unet/head/{name}"] *= 0.0
    small, distances = VIDEO[:1, :, ::2, ::2], []
    for weight in (0.0, 4.0):
        chosen = replace(large.sampling, reconstruction=weight, steps=4)
        video = large.upsample(params, KEY, 0.5 * VIDEO[:1], sampling=chosen)
        assert video.shape == (1, 4, 16, 16, 3)
        distances.append(np.linalg.norm(area(video, VIDEO[:1].shape) - 0.5 * VIDEO[:1]))
    assert distances[1] < 0.5 * distances[0]
    assert small.shape == (1, 4, 4, 4, 3)
    with pytest.raises(UserError, match=r"6x6 cannot be upsampled to 16x16"):
        large.upsample(params, KEY, VIDEO[:1, :, :6, :6])
    with pytest.raises(UserError, match="cannot be upsampled"):
        large.upsample(params, KEY, jnp.zeros((1, 4, 32, 16, 3)))


# The canvas


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(1, 20), st.data())
def test_windows_cover_every_frame_and_overlap(length, window, data):
    overlap = data.draw(st.integers(0, window - 1))
    starts = sampling.windows(length, window, overlap)
    covered = {frame for start in starts for frame in range(start, start + window)}
    assert covered >= set(range(length))
    if length > window:
        assert starts[0] == 0
        assert starts[-1] == length - window
        steps = np.diff(starts)
        assert (steps >= 1).all()
        assert (steps <= window - overlap).all()
        assert len(starts) == 1 + -(-(length - window) // (window - overlap))
    else:
        assert starts == [0]


@pytest.mark.parametrize("overlap", [-1, 4, 9])
def test_an_overlap_must_be_below_the_window(overlap):
    with pytest.raises(UserError, match=f"overlap is {overlap}; it must be within 0 and 3"):
        sampling.windows(9, 4, overlap)


@pytest.fixture
def calls(monkeypatch):
    """`sampling.sample` replaced: the n-th call gives clips of n / 100, known frames as they are."""
    made = []

    def sample(config, params, key, *, frames, size, known, count, **options):
        made.append({"known": known, "key": key, "frames": frames, **options})
        clip = jnp.full((count, frames, *size, 3), len(made) / 100)
        if known is None:
            return clip
        return jnp.where(known.frames[..., None, None, None], known.video, clip)

    monkeypatch.setattr(sampling, "sample", sample)
    return made


def clips(frames, size=8, batch=2):
    return jnp.asarray(naive.normal(batch, frames, size, size, 3))


def level(frames):
    """Which call made each frame of the first clip."""
    return [round(100 * float(frame.mean())) for frame in np.asarray(frames[0])]


def test_extension_samples_each_frame_once_from_what_is_known(calls):
    video, done = clips(3), []
    longer = PLAIN.extend({}, KEY, video, 9, progress=lambda *so_far: done.append(so_far))
    assert longer.shape == (2, 9, 8, 8, 3)
    np.testing.assert_array_equal(longer[:, :3], video)
    assert level(longer[:, 3:]) == [1, 2, 2, 3, 3, 4]
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for call, start, known in zip(calls, (0, 2, 4, 5), (3, 2, 2, 3), strict=True):
        assert call["frames"] == 4
        assert np.asarray(call["known"].frames).tolist() == [[i < known for i in range(4)]] * 2
        np.testing.assert_array_equal(
            call["known"].video[:, :known], longer[:, start : start + known]
        )
    assert len({str(jax.random.key_data(call["key"])) for call in calls}) == 4


def test_windows_that_are_known_already_are_passed_over(calls):
    longer = PLAIN.extend({}, KEY, clips(8), 10)
    assert len(calls) == 1
    assert level(longer[:, 8:]) == [1, 1]


def test_clips_shorter_than_the_window_are_sampled_at_their_length(calls):
    longer = PLAIN.extend({}, KEY, clips(1), 2)
    assert longer.shape[1] == calls[0]["frames"] == 2
    large = system(data=replace(DATA, world=replace(DATA.world, size=16)))
    assert large.upsample({}, KEY, clips(1)).shape == (2, 1, 16, 16, 3)
    assert large.upsample({}, KEY, clips(2), rate=2).shape == (2, 3, 16, 16, 3)


def test_a_window_of_ones_own_and_its_overlap(calls):
    longer = PLAIN.extend({}, KEY, clips(2), 8, window=6)
    assert [call["frames"] for call in calls] == [6, 6]
    assert level(longer[:, 2:]) == [1, 1, 1, 1, 2, 2]
    calls.clear()
    PLAIN.extend({}, KEY, clips(2), 6, window=2)  # the overlap is half of this window
    assert len(calls) == 4


def test_filling_keeps_the_key_frames(calls):
    video = clips(3)
    filled = PLAIN.fill({}, KEY, video, 3)
    assert filled.shape == (2, 7, 8, 8, 3)
    np.testing.assert_array_equal(filled[:, ::3], video)
    assert level(np.delete(filled, [0, 3, 6], 1)) == [1, 1, 2, 2]
    for call in calls:  # between key frames, never beyond them
        assert np.asarray(call["known"].frames[0]).tolist() == [True, False, False, True]
    calls.clear()
    assert level(PLAIN.fill({}, KEY, video, 2)[:, 1::2]) == [1, 2]
    calls.clear()
    PLAIN.fill({}, KEY, clips(6), 2, window=8)
    assert [call["frames"] for call in calls] == [7, 7]
    for call in calls:
        assert np.asarray(call["known"].frames)[:, [0, -1]].all()


def test_upsampling_in_time_and_space_shows_each_window_its_part(calls):
    large = system(data=replace(DATA, world=replace(DATA.world, size=16)))
    video = clips(3)
    made = large.upsample({}, KEY, video, rate=3)
    assert made.shape == (2, 7, 16, 16, 3)
    assert level(made) == [1, 1, 1, 1, 2, 2, 2]
    assert calls[0]["known"] is None
    for call, start in zip(calls, (0, 3), strict=True):
        observed = np.asarray(call["low"].frames)
        assert observed[0].tolist() == [(start + i) % 3 == 0 for i in range(4)]
        places = np.flatnonzero(observed[0])
        np.testing.assert_array_equal(call["low"].video[:, places], video[:, (start + places) // 3])
    np.testing.assert_array_equal(
        np.asarray(calls[1]["known"].frames[0]), [True, False, False, False]
    )


# Bad input is one line


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (TEXT, {"prompts": [""]}, "the prompt is empty"),
        (TEXT, {"prompts": ["red", "  \n"]}, "the prompt is empty"),
        (TEXT, {"prompts": ["red " * 2500]}, "2500 tokens, this model reads 4"),
        (TEXT, {"prompts": "red circle"}, "give a list"),
        (PLAIN, {"prompts": ["red"]}, "trained without text"),
        (PLAIN, {"count": 0}, "count is 0"),
        (PLAIN, {"frames": 0}, "frames is 0"),
        (PLAIN, {"size": (8, 0)}, "size 8x0"),
        (replace(PLAIN, model=replace(PLAIN.model, patch=2)), {"size": (8, 7)}, "multiples of 2"),
    ],
)
def test_what_cannot_be_sampled_is_one_line(config, options, words):
    with pytest.raises(UserError, match=words) as caught:
        config.sample({}, KEY, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"steps": 0}, "steps is 0"), ({"gamma": 1.5}, "gamma is 1.5"), ({"percentile": 2.0}, "is 2")],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        Sampling(**settings)


def test_heun_starts_where_the_data_still_have_a_share():
    """On the whole cosine schedule its first correction would overshoot; the others take the schedule's even times."""
    levels = {
        name: sampling.make_levels(PLAIN, Sampling(sampler=name, steps=24))
        for name in ("heun", "ddim")
    }
    assert len(levels["heun"]) == len(levels["ddim"]) == 25
    assert levels["heun"][0] == pytest.approx(-2 * np.log(80.0), abs=1e-4)
    assert levels["ddim"][0] == pytest.approx(-20.0, abs=1e-3)
    assert (np.diff(levels["heun"]) > 0).all()


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: PLAIN.extend({}, KEY, clips(3), 3), "frames is 3, the video has 3 already"),
        (lambda: PLAIN.extend({}, KEY, clips(3), 9, overlap=4), "overlap is 4"),
        (lambda: TEXT.extend({}, KEY, clips(3), 9, prompts=["red"]), "1 prompts for 2 clips"),
        (lambda: PLAIN.fill({}, KEY, clips(3), 1), "rate is 1"),
        (lambda: PLAIN.fill({}, KEY, clips(1), 2), "for 1 key frames"),
        (lambda: PLAIN.fill({}, KEY, clips(3), 2, overlap=2), "overlap is 2; windows that begin"),
        (lambda: PLAIN.upsample({}, KEY, clips(3), rate=0), "rate is 0"),
        (lambda: PLAIN.fill({}, KEY, clips(3), 4), "rate is 4; it must be below the 4 frames"),
    ],
)
def test_what_cannot_be_completed_is_one_line(calls, run, words):
    with pytest.raises(UserError, match=words) as caught:
        run()
    assert "\n" not in str(caught.value)
    assert not calls
