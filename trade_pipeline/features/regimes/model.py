"""A hidden Markov model of market regimes, and its document.

Knows nothing of fitting or of files. Start at `RegimeModel`.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from trade_pipeline.settings.base import Settings
from trade_pipeline.settings.regimes import FEWEST_STATES, MOST_INPUTS, MOST_STATES

FloatArray = NDArray[np.float64]

LARGEST = 1e100  # the square of a standardised input is finite
LEAST = 1e-100
ROUNDING = 1e-9  # of probabilities that sum to 1

Name = Annotated[str, Field(strict=True, min_length=1, max_length=200)]
Number = Annotated[float, Field(strict=True, ge=-LARGEST, le=LARGEST)]
Positive = Annotated[float, Field(strict=True, ge=LEAST, le=LARGEST)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
OfInputs = Field(min_length=1, max_length=MOST_INPUTS)
OfStates = Field(min_length=FEWEST_STATES, max_length=MOST_STATES)
Numbers = Annotated[tuple[Number, ...], OfInputs]
Matrix = Annotated[tuple[Numbers, ...], OfInputs]
Shares = Annotated[tuple[Share, ...], OfStates]


class RegimeError(ValueError):
    """Regimes cannot be fitted, filtered or read; the message says why and what to do."""


class RegimeDocument(Settings):
    """A `RegimeModel` as JSON: closed, bounded, and checked to be a model."""

    inputs: Annotated[tuple[Name, ...], OfInputs]
    center: Numbers
    scale: Annotated[tuple[Positive, ...], OfInputs]
    start: Shares
    transition: Annotated[tuple[Shares, ...], OfStates]
    means: Annotated[tuple[Numbers, ...], OfStates]
    covariances: Annotated[tuple[Matrix, ...], OfStates]

    @model_validator(mode="after")
    def _is_a_model(self) -> "RegimeDocument":
        if len(set(self.inputs)) != len(self.inputs):
            raise ValueError("inputs: a name is listed twice; each input is read once")
        width, states = len(self.inputs), len(self.start)
        for name, shape, wanted in (
            ("center", _shape(self.center), (width,)),
            ("scale", _shape(self.scale), (width,)),
            ("transition", _shape(self.transition), (states, states)),
            ("means", _shape(self.means), (states, width)),
            ("covariances", _shape(self.covariances), (states, width, width)),
        ):
            if shape != wanted:
                raise ValueError(
                    f"{name} has shape {list(shape) if shape else 'of uneven rows'}; "
                    f"{list(wanted)} is needed for {width} input(s) and {states} states"
                )
        for name, shares in (("start", (self.start,)), ("transition", self.transition)):
            for state, row in enumerate(shares):
                if abs(sum(row) - 1) > ROUNDING:
                    raise ValueError(f"{name}, row {state}, sums to {sum(row)!r}; it must be 1")
        _check_covariances(np.array(self.covariances))
        return self


@dataclass(frozen=True)
class RegimeModel:
    """K Gaussian states of D inputs, ordered by the variance of the first input, calmest first.

    Attributes:
        inputs: names of the D inputs.
        center, scale: float64 [D], mean and deviation of the rows it was fitted on.
        start: float64 [K], chance of each state at a segment's first row.
        transition: float64 [K, K], chance of the column's state after the row's.
        means: float64 [K, D], of standardised inputs, `(input - center) / scale`.
        covariances: float64 [K, D, D], of standardised inputs.
    """

    inputs: tuple[str, ...]
    center: FloatArray
    scale: FloatArray
    start: FloatArray
    transition: FloatArray
    means: FloatArray
    covariances: FloatArray

    @property
    def states(self) -> int:
        """Number of states, K."""
        return len(self.start)

    def document(self) -> dict[str, Any]:
        """As JSON holds it; a float survives exactly."""
        arrays = ("center", "scale", "start", "transition", "means", "covariances")
        return {
            "inputs": list(self.inputs),
            **{name: getattr(self, name).tolist() for name in arrays},
        }

    @classmethod
    def parse(cls, document: Any) -> "RegimeModel":
        """The inverse of `document`.

        Raises:
            RegimeError: a key is missing or unknown, a number is not usable, or parts do not fit.
        """
        try:
            read = RegimeDocument.model_validate(document)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            key = ".".join(str(part) for part in first["loc"]) or "the document"
            said = first["msg"].removeprefix("Value error, ")
            raise RegimeError(
                f"regime model: {key}: {said} (found {str(first['input'])[:80]!r}); "
                "fit the regimes again with this version."
            ) from None
        return cls(
            read.inputs,
            np.array(read.center),
            np.array(read.scale),
            np.array(read.start),
            np.array(read.transition),
            np.array(read.means),
            np.array(read.covariances),
        )


def _shape(nested: Any) -> tuple[int, ...]:
    """Shape of nested tuples; empty where rows are of different lengths."""
    if not isinstance(nested, tuple):
        return ()
    inner = {_shape(part) for part in nested}
    if len(inner) != 1:
        return ()
    shape = inner.pop()
    return (len(nested), *shape) if shape or not isinstance(nested[0], tuple) else ()


def _check_covariances(covariances: FloatArray) -> None:
    for state, covariance in enumerate(covariances):
        if not np.array_equal(covariance, covariance.T):
            raise ValueError(f"covariances, state {state}, is not symmetric")
        try:
            np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            raise ValueError(f"covariances, state {state}, is not positive definite") from None
    variances = covariances[:, 0, 0]
    if not (np.diff(variances) >= 0).all():
        raise ValueError(
            f"states are not ordered: variances of the first input are {variances.tolist()}, and "
            "they must not fall"
        )
