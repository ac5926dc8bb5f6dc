"""What a policy bundle may say: closed, bounded models of its documents, and checks of its weights.

A bundle may come from another machine. Nothing is built from it before it went through here, so
that a hostile one costs no more than its own size. Start at `PolicySpecification`.
"""

import json
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
import safetensors
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from trade_pipeline.features.regimes.model import RegimeDocument
from trade_pipeline.settings.algorithm import AlgorithmSettings
from trade_pipeline.settings.base import Settings
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.settings.features import Scaling
from trade_pipeline.settings.regimes import RegimeSettings
from trade_pipeline.simulator.observation import account_columns
from trade_pipeline.storage.location import ArtifactLocation

if TYPE_CHECKING:
    from trade_pipeline.training.normalizer import Normalizer

MOST_DOCUMENT_BYTES = 2**24
MOST_WEIGHTS = 2**26  # 256 MiB
MOST_VALUES = 2**22  # of one observation, at any layer
LARGEST = 3e38  # a float32 holds it

Size = Annotated[int, Field(strict=True, ge=1, le=2**20)]
Sizes = Annotated[tuple[Size, ...], Field(min_length=1, max_length=64)]
WholeNumber = Annotated[int, Field(strict=True, ge=0)]
Number = Annotated[float, Field(strict=True, ge=-LARGEST, le=LARGEST)]
Text = Annotated[str, Field(max_length=1_000)]
Numbers = Annotated[tuple[Number, ...], Field(max_length=2**20)]
Table = tuple[tuple[float, ...], ...]
NotNegative = Annotated[float, Field(strict=True, ge=0, le=LARGEST)]
NotNegatives = Annotated[tuple[NotNegative, ...], Field(max_length=2**20)]
Positive = Annotated[float, Field(strict=True, gt=0, le=LARGEST)]
Positives = Annotated[tuple[Positive, ...], Field(max_length=2**20)]
MOST_KNOTS = 256  # of one feature
Knots = Annotated[tuple[Number, ...], Field(min_length=1, max_length=MOST_KNOTS)]
Score = Annotated[float, Field(strict=True, ge=-10, le=10)]  # 10 deviations: beyond any rank
Scores = Annotated[tuple[Score, ...], Field(min_length=1, max_length=MOST_KNOTS)]


class PolicyError(ValueError):
    """A policy bundle cannot be used here; the message says why."""


class ObservationDocument(Settings):
    """What the policy sees."""

    window: Size
    instruments: Annotated[tuple[Text, ...], Field(min_length=1, max_length=10_000)]
    feature_names: Annotated[tuple[Text, ...], Field(min_length=1, max_length=10_000)]
    scaling: Scaling
    lookback: WholeNumber


class ChoicesDocument(Settings):
    """Actions that are choices; see `action_spaces.action_specification`."""

    kind: Literal["multi_discrete", "discrete", "binned"]
    nvec: Annotated[tuple[Size, ...], Field(min_length=4, max_length=4)]

    @property
    def outputs(self) -> int:
        """Numbers that the network gives, L."""
        match self.kind:
            case "multi_discrete":
                return sum(self.nvec)
            case "discrete":
                return prod(self.nvec)
            case _:
                return len(self.nvec)


class BoxDocument(Settings):
    """Actions that are weights within bounds."""

    kind: Literal["box", "squashed_box"]
    low: Numbers
    high: Numbers

    @property
    def outputs(self) -> int:
        """Numbers that the network gives, L."""
        return len(self.low)


class _Network(Settings):
    window: Size
    columns: Size
    hidden: Sizes
    activation: Literal["tanh", "relu"]
    account_scale: Numbers
    outputs: Size


class MLPDocument(_Network):
    """See `networks.network_specification`; likewise the next two."""

    kind: Literal["mlp"]


class CNNDocument(_Network):
    """With convolutions over the window."""

    kind: Literal["cnn"]
    channels: Sizes
    kernel: Size


class LSTMDocument(_Network):
    """With a memory over the steps."""

    kind: Literal["lstm"]
    size: Size


class ActingDocument(Settings):
    """The parts of `spec.json` that acting needs."""

    observation: ObservationDocument
    action: Annotated[ChoicesDocument | BoxDocument, Field(discriminator="kind")]
    network: Annotated[MLPDocument | CNNDocument | LSTMDocument, Field(discriminator="kind")]

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "ActingDocument":
        seen, action, network = self.observation, self.action, self.network
        instruments = len(seen.instruments)
        for name, here, there in (
            ("window", network.window, seen.window),
            ("columns", network.columns, instruments * len(seen.feature_names)),
            ("account_scale", len(network.account_scale), account_columns(instruments)),
            ("outputs", network.outputs, action.outputs),
        ):
            if here != there:
                raise ValueError(
                    f"network.{name} is {here}, but observation and action make {there}"
                )
        if isinstance(action, BoxDocument):
            if not len(action.low) == len(action.high) == instruments:
                raise ValueError(
                    f"action has {len(action.low)} lower and {len(action.high)} upper bounds, but "
                    f"there is {instruments} instrument(s); one each is needed"
                )
            if any(low > high for low, high in zip(action.low, action.high, strict=True)):
                raise ValueError("a lower bound of action is above the upper one")
        elif instruments != 1:
            raise ValueError(
                f"action of kind {action.kind} trades one instrument, not {instruments}"
            )
        _check_size(network)
        return self


class ConfigurationDocument(Settings):
    """Settings that it was trained with, every default written out."""

    environment: EnvironmentSettings
    algorithm: AlgorithmSettings


class RegimesDocument(Settings):
    """The regimes of its fold; see `regimes.Regimes`."""

    settings: RegimeSettings
    model: RegimeDocument


class PolicySpecification(ActingDocument):
    """`spec.json`: all that a policy's bytes depend on, and all that loading it needs."""

    dataset_version: Text
    regimes: RegimesDocument | None = None  # absent where the experiment has none
    configuration: ConfigurationDocument
    fold: WholeNumber
    seed: WholeNumber
    threads: Size
    implementations: Annotated[dict[Text, WholeNumber], Field(max_length=100)]
    versions: Annotated[dict[Text, Text], Field(max_length=100)]


class AccountDocument(Settings):
    """Statistics of the account vector."""

    mean: Numbers
    var: NotNegatives
    epsilon: Positive
    clip: Positive


class RanksDocument(Settings):
    """Knots of each feature of each instrument, and the score at each of them."""

    knots: Annotated[
        tuple[Annotated[tuple[Knots, ...], Field(max_length=2**20)], ...],
        Field(max_length=10_000),
    ]
    scores: Annotated[
        tuple[Annotated[tuple[Scores, ...], Field(max_length=2**20)], ...],
        Field(max_length=10_000),
    ]

    @model_validator(mode="after")
    def _scores_grow_with_knots(self) -> "RanksDocument":
        if [len(row) for row in self.knots] != [len(row) for row in self.scores]:
            raise ValueError("knots and scores must be of the same instruments and features")
        for instrument, rows in enumerate(zip(self.knots, self.scores, strict=True)):
            for feature, (knots, scores) in enumerate(zip(*rows, strict=True)):
                where = f"of instrument {instrument}, feature {feature}"
                if len(knots) != len(scores):
                    raise ValueError(
                        f"{len(knots)} knots but {len(scores)} scores {where}; one each is needed"
                    )
                # As they are used: two numbers may be the same float32.
                if (np.diff(np.array(knots, np.float32)) <= 0).any():
                    raise ValueError(f"knots {where} must increase, each a float32 of its own")
                if (np.diff(np.array(scores, np.float32)) < 0).any():
                    raise ValueError(f"scores {where} must not decrease")
        return self


class NormalizerDocument(Settings):
    """`normalizer.json`; `ranks` is there with scaling `rank` alone."""

    mean: Annotated[tuple[Numbers, ...], Field(max_length=10_000)]
    std: Annotated[tuple[Positives, ...], Field(max_length=10_000)]
    account: AccountDocument | None
    ranks: RanksDocument | None = None

    @field_validator("mean", "std")
    @classmethod
    def _rows_are_of_one_length(cls, rows: Table) -> Table:
        if len({len(row) for row in rows}) != 1:
            raise ValueError("rows, one an instrument, must be there and of the same length")
        return rows

    @model_validator(mode="after")
    def _ranks_stand_alone(self) -> "NormalizerDocument":
        if self.ranks is None:
            return self
        if [len(row) for row in self.ranks.knots] != [len(row) for row in self.mean]:
            raise ValueError("ranks must have the instruments and features of mean")
        if any(x != 0 for row in self.mean for x in row) or any(
            x != 1 for row in self.std for x in row
        ):
            raise ValueError("beside ranks every mean must be 0 and every std 1")
        return self


Document = TypeVar("Document", bound=BaseModel)


def read_document(location: ArtifactLocation) -> Any:
    """The JSON value of a member.

    Raises:
        PolicyError: it is absent, too large, nested too deeply or no JSON.
    """
    try:
        size = location.path.stat().st_size
        if size > MOST_DOCUMENT_BYTES:
            raise PolicyError(f"{location}: {size} bytes; at most {MOST_DOCUMENT_BYTES} are read.")
        return json.loads(location.path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, PolicyError):
            raise
        raise PolicyError(
            f"{location}: cannot be read as JSON ({error}); train the policy again."
        ) from error


def parse(document: Any, model: type[Document], origin: str) -> Document:
    """Validate a JSON value.

    Raises:
        PolicyError: names the key and what is wrong with it, first come first served.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the document"
        message = first["msg"].removeprefix("Value error, ")
        raise PolicyError(
            f"{origin}: {key}: {message} (found {str(first['input'])[:80]!r}); "
            "train the policy again with this version."
        ) from None


def check_acting(specification: Mapping[str, Any]) -> None:
    """Refuse an observation, action or network that do not fit together or are too large.

    Raises:
        PolicyError: names the parts.
    """
    parts = {name: specification.get(name) for name in ActingDocument.model_fields}
    parse(parts, ActingDocument, "specification")


def check_weights(
    weights: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse weights that a network does not have, or not so.

    Raises:
        PolicyError: names the weight.
    """
    found = {name: (str(array.dtype), array.shape) for name, array in weights.items()}
    _check_layout(found, shapes, "float32")
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise PolicyError(f"weight {name} holds numbers that are not finite; train again.")


def read_weights(
    location: ArtifactLocation, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[np.float32]]:
    """Weights of a safetensors file; names, shapes and dtypes are looked at before any is read.

    Raises:
        PolicyError: it is no such file, or holds other weights.
    """
    try:
        with safetensors.safe_open(location.path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {
                name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()
            }
            _check_layout(found, shapes, "F32")
            return {name: file.get_tensor(name) for name in shapes}
    except PolicyError as error:
        raise PolicyError(f"{location}: {error}") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise PolicyError(
            f"{location}: cannot be read as safetensors ({error}); train the policy again."
        ) from error


def check_normalizer(normalizer: "Normalizer", specification: Mapping[str, Any]) -> None:
    """Refuse statistics of other features, another account or another scaling.

    Raises:
        PolicyError: names both shapes, or the scaling.
    """
    seen = specification["observation"]
    wanted = (len(seen["instruments"]), len(seen["feature_names"]))
    shapes: dict[str, tuple[NDArray[Any], tuple[int, ...]]] = {
        "mean": (normalizer.mean, wanted),
        "std": (normalizer.std, wanted),
    }
    if normalizer.account is not None:
        columns = (account_columns(wanted[0]),)
        shapes["account.mean"] = (normalizer.account.mean, columns)
        shapes["account.var"] = (normalizer.account.var, columns)
    for name, (array, shape) in shapes.items():
        if array.shape != shape:
            raise PolicyError(
                f"normalizer: {name} has shape {list(array.shape)}; {list(shape)} is needed for "
                "the policy's instruments and features."
            )
    if not (normalizer.std > 0).all():
        raise PolicyError("normalizer: std holds a deviation that a float32 rounds to 0.")
    if (normalizer.ranks is not None) != (seen["scaling"] == "rank"):
        holds = "no ranks" if normalizer.ranks is None else "ranks"
        raise PolicyError(
            f"normalizer: holds {holds}, but the policy's scaling is {seen['scaling']}; train the "
            "policy again."
        )


def _check_size(network: MLPDocument | CNNDocument | LSTMDocument) -> None:
    """Refuse what would take too much memory; integers are of any size, so nothing wraps."""
    length, features = network.window, network.columns
    values, weights = [length * features], 0
    if isinstance(network, CNNDocument):
        for channels in network.channels:
            length -= network.kernel - 1
            if length < 1:
                raise ValueError(
                    f"convolutions of kernel {network.kernel} leave nothing of a window of "
                    f"{network.window}"
                )
            weights += features * network.kernel * channels
            features = channels
            values.append(length * features)
    inputs = length * features + len(network.account_scale)
    sizes = list(network.hidden)
    if isinstance(network, LSTMDocument):
        weights += 4 * network.size * (network.size + sizes[-1])
        values.append(4 * network.size)
    for outputs in (*sizes, network.outputs):
        weights += inputs * outputs
        values.append(inputs)
        inputs = outputs
    if weights > MOST_WEIGHTS or max(values) > MOST_VALUES:
        raise ValueError(
            f"the network has {weights} weights and up to {max(values)} values an observation; at "
            f"most {MOST_WEIGHTS} and {MOST_VALUES} are allowed"
        )


def _check_layout(
    found: Mapping[str, tuple[str, tuple[int, ...]]],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str,
) -> None:
    for name in sorted(shapes.keys() - found.keys()):
        raise PolicyError(f"weight {name} of the network is missing; train the policy again.")
    for name in sorted(found.keys() - shapes.keys()):
        raise PolicyError(f"weight {name} is none of the network's; train the policy again.")
    for name, shape in shapes.items():
        if found[name] != (dtype, shape):
            raise PolicyError(
                f"weight {name} is {found[name][0]} {list(found[name][1])}, but the network has "
                f"{dtype} {list(shape)}; train the policy again."
            )
