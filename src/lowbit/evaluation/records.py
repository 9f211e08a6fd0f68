"""What an evaluation finds, as frozen records that turn into plain data."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from lowbit.core.histogram import histogram

QUANTILES = (50.0, 90.0, 99.0, 99.9)
DECADES = (-7, 2)


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error; None where a single window gives no spread."""

    mean: float
    error: float | None


@dataclass(frozen=True)
class Divergence:
    """How far a model is from its reference.

    perplexity: of the reference on the same windows.
    kl: KL(reference || model), nats per token. kl_quantiles: of the per-token values, by percent, and their "max";
    kl_histogram: of their decimal logarithms, see `core.histogram`.
    agreement: the share of tokens on which both models hold the same next token the likeliest, 0 to 1.
    """

    perplexity: Estimate
    kl: Estimate
    kl_quantiles: Mapping[str, float]
    kl_histogram: Mapping[str, Any]
    agreement: Estimate


@dataclass(frozen=True)
class Size:
    """What a checkpoint takes on disk.

    bytes: of its weight files. parameters: of the model before quantization.
    bits_per_parameter: over the whole model. bits_per_weight: over the quantized layers, everything stored for
    them included; None where nothing is quantized.
    """

    bytes: int
    parameters: int
    bits_per_parameter: float
    bits_per_weight: float | None = None


@dataclass(frozen=True)
class Measures:
    """An evaluation: of what text, in which windows, and what was found.

    nats: the mean negative log-likelihood per predicted token; perplexity: its exponential.
    tokens: predicted ones, windows x (length - 1). tasks: metrics by task and name.
    """

    text: str
    windows: int
    length: int
    tokens: int
    nats: Estimate
    perplexity: Estimate
    divergence: Divergence | None = None
    size: Size | None = None
    tasks: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data; parts that were not measured are None."""
        return asdict(self)


def over_windows(values: Tensor) -> Estimate:
    """The mean of values [windows, tokens], with the standard error of the windows' means.

    Tokens of one window share their context and are not independent; windows nearly are.
    """
    means = values.double().mean(dim=1)
    error = float(means.std() / math.sqrt(len(means))) if len(means) > 1 else None
    return Estimate(float(means.mean()), error)


def as_perplexity(nats: Estimate) -> Estimate:
    """exp(nats), its error to first order."""
    mean = math.exp(nats.mean)
    return Estimate(mean, None if nats.error is None else mean * nats.error)


def logarithms(values: Tensor) -> dict[str, Any]:
    """Histogram of the decimal logarithms of all values, five bins a decade; what is below the scale counts at its end.

    Rounding leaves the divergence of equal predictions a little below zero.
    """
    low, high = DECADES
    logs = values.double().clamp_min(10.0**low).log10()
    return histogram(logs, float(low), float(high), 5 * (high - low))


def quantiles(values: Tensor) -> dict[str, float]:
    """The `QUANTILES` of all values, by percent, and their maximum."""
    flat = values.double().numpy().ravel()
    return {f"{q:g}": float(np.percentile(flat, q)) for q in QUANTILES} | {"max": float(flat.max())}
