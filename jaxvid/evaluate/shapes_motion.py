"""Which motion a track shows: small models fitted to positions, radii and orientations over time.

Law of the file: a track has n observations at increasing frame numbers `time`, some frames may be missing.
`x`, `y` and `radius` are fractions of the frame's shorter side, unwrapped (y down); `angle` is in radians
modulo `2 pi / fold`. A model is accepted only if its residual is small and the order of frames matters to
it: shuffled or frozen tracks fit none and give "unknown".
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

UNKNOWN = "unknown"

STILL = (
    0.035  # a centre whose standard deviation (fraction of the side) is below this does not move
)
MIN_TRAVEL = 0.15
MIN_LOG_GROWTH = 0.3  # between the first and the last frame of a clip
MIN_SPIN = math.radians(4)  # per frame
MAX_SPIN = math.radians(26)
ORBIT_RADII = (0.1, 0.3)
MIN_ORBIT_SWEEP = 1.1 * math.pi
MIN_HOP, MAX_HOP = 0.12, 0.4
HOP_PERIODS = np.arange(4.5, 14.01, 0.25)


@dataclass(frozen=True)
class Track:
    """One object over time. `fold` is the order of the shape's rotational symmetry, 0 if round."""

    time: Float[np.ndarray, " n"]
    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]
    radius: Float[np.ndarray, " n"]
    angle: Float[np.ndarray, " n"]
    fold: int


def classify(track: Track) -> str:
    """The motion's name as in `jaxvid.data.shapes.MOTIONS`, or "unknown"."""
    if len(track.time) < 5:
        return UNKNOWN
    growth, growth_fit = _line(track.time, np.log(track.radius))
    growth *= np.ptp(track.time)
    still_x, still_y = np.std(track.x) < STILL, np.std(track.y) < STILL
    if abs(growth) > MIN_LOG_GROWTH:
        if growth_fit > 0.9 and still_x and still_y:
            return "grows" if growth > 0 else "shrinks"
        return UNKNOWN
    if still_x and still_y:
        return "spins" if _spins(track) else UNKNOWN
    direction = _direction(track)
    if direction != UNKNOWN:
        return direction
    if still_x:
        return "bounces" if _bounces(track) else UNKNOWN
    return "orbits" if _orbits(track) else UNKNOWN


def _line(time: np.ndarray, value: np.ndarray) -> tuple[float, float]:
    """(slope, R^2) of the least-squares line."""
    t = time - time.mean()
    v = value - value.mean()
    slope = float((t * v).sum() / (t * t).sum())
    total = float((v * v).sum())
    return slope, 1 - float(((v - slope * t) ** 2).sum()) / total if total > 0 else 0.0


def _direction(track: Track) -> str:
    """A steady translation along an axis."""
    span = np.ptp(track.time)
    (vx, fit_x), (vy, fit_y) = _line(track.time, track.x), _line(track.time, track.y)
    along_x = abs(vx) > abs(vy)
    velocity, fit = (vx, fit_x) if along_x else (vy, fit_y)
    across = np.std(track.y if along_x else track.x)
    travel = abs(velocity) * span
    if travel < MIN_TRAVEL or fit < 0.88 or across > max(STILL, 0.08 * travel):
        return UNKNOWN
    names = ("moves left", "moves right") if along_x else ("moves up", "moves down")
    return names[int(velocity > 0)]


def _spins(track: Track) -> bool:
    """The periodogram of exp(i fold angle): missing frames and symmetry jumps do no harm."""
    if track.fold == 0:
        return False
    rates = np.linspace(-MAX_SPIN, MAX_SPIN, 209)
    phase = np.exp(1j * track.fold * (track.angle[None] - rates[:, None] * track.time[None]))
    power = np.abs(phase.mean(1))
    best = int(power.argmax())
    return bool(power[best] > 0.85 and abs(rates[best]) > MIN_SPIN)


def _bounces(track: Track) -> bool:
    """Parabolic hops y = floor - 4 height u (1 - u), u = frac(time / period + phase), by a grid."""
    phases = np.arange(24) / 24
    part = np.mod(track.time / HOP_PERIODS[:, None, None] + phases[:, None], 1.0)
    hop = 4 * part * (1 - part)
    hop = hop - hop.mean(-1, keepdims=True)
    y = track.y - track.y.mean()
    power = (hop * hop).sum(-1) + 1e-9
    height = -(hop * y).sum(-1) / power
    fit = (height * height * power) / max(float((y * y).sum()), 1e-9)
    fit[(height < MIN_HOP) | (height > MAX_HOP)] = 0
    # Period, phase, height and floor are free: what a short track would fit by luck is subtracted.
    count = len(track.time)
    return bool(1 - (1 - fit.max()) * (count - 1) / max(count - 4, 1) > 0.9)


def _orbits(track: Track) -> bool:
    """A circle by algebraic least squares (Kasa), gone round at a steady rate."""
    x, y = track.x - track.x.mean(), track.y - track.y.mean()
    system = np.stack([x, y, np.ones_like(x)], 1)
    a, b, c = np.linalg.lstsq(system, x * x + y * y, rcond=None)[0]
    radius = math.sqrt(max(c + (a * a + b * b) / 4, 0.0))
    if not ORBIT_RADII[0] < radius < ORBIT_RADII[1]:
        return False
    distance = np.hypot(x - a / 2, y - b / 2)
    turn = np.unwrap(np.arctan2(y - b / 2, x - a / 2))
    rate, fit = _line(track.time, turn)
    sweep = abs(rate) * np.ptp(track.time)
    return bool(
        np.std(distance) < 0.2 * radius and fit > 0.96 and MIN_ORBIT_SWEEP < sweep < 8 * math.pi
    )
