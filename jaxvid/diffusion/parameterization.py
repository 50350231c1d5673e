r"""What networks output, and the way from there to a `Prediction` and between the four quantities.

Symbols: z = alpha x + sigma eps with alpha^2 + sigma^2 = 1; logsnr is [], [b] or [b, t] against z [b, t, ...].

    v = alpha eps - sigma x                    (Salimans & Ho 2022)                               (1)
    score = grad_z log q(z) = -eps / sigma                                                        (2)
    x   = (z - sigma eps) / alpha   = alpha z - sigma v                                           (3)
    eps = (z - alpha x) / sigma     = sigma z + alpha v                                           (4)
    v   = (alpha z - x) / sigma     = (eps - sigma z) / alpha                                     (5)

(3)-(5) follow from (1) and alpha^2 + sigma^2 = 1. Going to or from v never divides by a small number except in (5); a
pair that does (x to eps at high log-SNR, eps to x at low) loses e^{|logsnr|/2} of the relative precision, which is why a
`Prediction` keeps the exact output.

EDM (Karras et al. 2022, Eq. 7): D = c_skip z_ve + c_out F(c_in z_ve, c_noise) with z_ve = z / alpha and sigma_ve = sigma / alpha.
With S = sigma_data and d = sqrt(sigma^2 + S^2 alpha^2) their Table 1 becomes

    c_in z_ve = z / d                                                                             (6)
    x = S^2 alpha z / d^2 + S sigma F / d                                                         (7)
    v = alpha sigma (1 - S^2) z / d^2 - S F / d                                                   (8)

so S = 1 is v-prediction with F = -v: the preconditioning of Stable Video Diffusion.
"""

from typing import Literal, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvid.diffusion.process import alpha_sigma, at_least_float32, expand
from jaxvid.diffusion.types import Prediction

Target: TypeAlias = Literal["epsilon", "x", "v"]
Quantity: TypeAlias = Literal["epsilon", "x", "v", "score"]


def convert(
    value: Float[Array, "*shape"],
    z: Float[Array, "*shape"],
    logsnr: Float[Array, "..."],
    source: Quantity,
    target: Quantity,
) -> Float[Array, "*shape"]:
    """Returns the `target` quantity that, with `z`, says the same as `value` of kind `source`; (2) to (5)."""
    value, z = at_least_float32(value), at_least_float32(z)
    alpha, sigma = alpha_sigma(expand(logsnr, z))
    if source == target:
        return value
    if source == "score":
        return convert(-sigma * value, z, logsnr, "epsilon", target)
    if target == "score":
        return -convert(value, z, logsnr, source, "epsilon") / sigma
    match source, target:
        case "epsilon", "x":
            return (z - sigma * value) / alpha
        case "v", "x":
            return alpha * z - sigma * value
        case "x", "epsilon":
            return (z - alpha * value) / sigma
        case "v", "epsilon":
            return sigma * z + alpha * value
        case "x", "v":
            return (alpha * z - value) / sigma
        case "epsilon", "v":
            return (value - sigma * z) / alpha
    raise ValueError(f"no conversion from {source!r} to {target!r}; they are epsilon, x, v, score")


def to_prediction(
    output: Float[Array, "*shape"],
    z: Float[Array, "*shape"],
    logsnr: Float[Array, "..."],
    target: Target,
) -> Prediction:
    """Returns the `Prediction` of a network whose output estimates `target`; keeps the output in `aux`."""
    output = at_least_float32(output)
    aux = {} if target == "x" else {target: output}
    return Prediction(convert(output, z, logsnr, target, "x"), None, aux)


def learned_range(
    output: Float[Array, "*lead c2"],
    z: Float[Array, "*lead c"],
    logsnr: Float[Array, "..."],
    target: Target,
) -> Prediction:
    """As `to_prediction`, of a network that also outputs the variance's place in its range (2c channels).

    Nichol & Dhariwal 2021, Eq. 15: the second half u of the channels, nominally in [-1, 1], gives the log-variance
    of the reverse step as (u + 1)/2 of the way from the posterior's to the transition's.
    """
    mean, place = jnp.split(at_least_float32(output), 2, axis=-1)
    return to_prediction(mean, z, logsnr, target)._replace(log_variance=0.5 * (place + 1.0))


def edm_input(
    z: Float[Array, "*shape"], logsnr: Float[Array, "..."], sigma_data: float = 0.5
) -> Float[Array, "*shape"]:
    """Returns what an EDM network takes for `z`, (6); its time input is `EDM().network_time(logsnr)`."""
    z = at_least_float32(z)
    alpha, sigma = alpha_sigma(expand(logsnr, z))
    return z / jnp.sqrt(sigma**2 + (sigma_data * alpha) ** 2)


def edm_prediction(
    output: Float[Array, "*shape"],
    z: Float[Array, "*shape"],
    logsnr: Float[Array, "..."],
    sigma_data: float = 0.5,
) -> Prediction:
    """Returns the `Prediction` of an EDM network's output F, (7), with the exact v of (8) in `aux`."""
    output, z = at_least_float32(output), at_least_float32(z)
    alpha, sigma = alpha_sigma(expand(logsnr, z))
    d2 = sigma**2 + (sigma_data * alpha) ** 2
    scaled = sigma_data * output / jnp.sqrt(d2)
    x = sigma_data**2 * alpha * z / d2 + sigma * scaled
    v = (1.0 - sigma_data**2) * alpha * sigma * z / d2 - scaled
    return Prediction(x, None, {"v": v})


def as_quantity(
    prediction: Prediction,
    z: Float[Array, "*shape"],
    logsnr: Float[Array, "..."],
    target: Quantity,
) -> Float[Array, "*shape"]:
    """Returns the prediction as `target`, from the network's exact output where the prediction holds it."""
    if target == "x":
        return prediction.x
    for source in ("epsilon", "v"):
        if source in prediction.aux:
            return convert(prediction.aux[source], z, logsnr, source, target)
    return convert(prediction.x, z, logsnr, "x", target)


def as_epsilon(
    prediction: Prediction, z: Float[Array, "*shape"], logsnr: Float[Array, "..."]
) -> Float[Array, "*shape"]:
    """Returns the prediction as noise."""
    return as_quantity(prediction, z, logsnr, "epsilon")


def as_v(
    prediction: Prediction, z: Float[Array, "*shape"], logsnr: Float[Array, "..."]
) -> Float[Array, "*shape"]:
    """Returns the prediction as v of (1)."""
    return as_quantity(prediction, z, logsnr, "v")


def as_score(
    prediction: Prediction, z: Float[Array, "*shape"], logsnr: Float[Array, "..."]
) -> Float[Array, "*shape"]:
    """Returns the prediction as the score (2)."""
    return as_quantity(prediction, z, logsnr, "score")
