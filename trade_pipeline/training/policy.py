"""A trained policy as it is stored and run: weights, scaling, specification.

The one inference path: validation, backtests and whatever trades later all ask a `PolicyRunner`,
which knows nothing of how a policy was trained. Nothing is unpickled and nothing a bundle says is
believed: `policy_documents` bounds what `spec.json` may ask for, and weights are read with
safetensors. Start at `PolicyRunner.load`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from trade_pipeline.simulator import lanes
from trade_pipeline.simulator.actions import ActionMapping
from trade_pipeline.simulator.compiled import resolved
from trade_pipeline.simulator.kernel import (
    Account,
    Fills,
    Market,
    Orders,
    Rules,
    check_account,
)
from trade_pipeline.simulator.recording import Recorder
from trade_pipeline.storage.bundles import verify
from trade_pipeline.storage.documents import write_json
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training import policy_documents as documents
from trade_pipeline.training.compiled_network import CompiledNetwork, weight_shapes
from trade_pipeline.training.dataset import Dataset
from trade_pipeline.training.inference import (
    ACTION_KINDS,
    Choosing,
    choose,
    forward_all,
    trade_rows,
)
from trade_pipeline.training.normalizer import NORMALIZER, AccountStatistics, Normalizer
from trade_pipeline.training.policy_documents import PolicyError
from trade_pipeline.training.regimes import Regimes, with_regimes

__all__ = [
    "DETERMINISTIC",
    "LEARNER",
    "NORMALIZER",
    "SPEC",
    "WEIGHTS",
    "AccountStatistics",
    "Normalizer",
    "PolicyError",
    "PolicyRunner",
    "write_policy",
]

WEIGHTS, LEARNER = "policy.safetensors", "learner.safetensors"
SPEC = "spec.json"
ROWS_AT_A_TIME = 2**15
DETERMINISTIC = (WEIGHTS, LEARNER, NORMALIZER, SPEC)

FloatArray = NDArray[np.float32]
Action = NDArray[Any]  # int64 or float32
Observation = Mapping[str, NDArray[Any]]


class Traded(NamedTuple):
    """What a policy made of some rows: float64 equity after each step, and how many fills."""

    equity: NDArray[np.float64]
    fills: int


class PolicyRunner:
    """Asks a policy for its deterministic action, one observation at a time, for one caller.

    Args:
        specification: as `spec.json` holds it; observation, action and network are read here.
        normalizer: of the features, and of the account vector.
        weights: float32 arrays under the names of `networks.PolicyNetwork`'s state.

    Attributes:
        specification: as given.
        normalizer: as given.
        network: for outputs of many observations at once, with memories of their own.

    Raises:
        PolicyError: the parts do not fit together.
    """

    def __init__(
        self,
        specification: Mapping[str, Any],
        normalizer: Normalizer,
        weights: Mapping[str, FloatArray],
    ) -> None:
        documents.check_acting(specification)
        self.specification = specification
        self.normalizer = normalizer
        network, action = specification["network"], specification["action"]
        documents.check_weights(weights, weight_shapes(network))
        account = normalizer.account
        documents.check_normalizer(normalizer, specification)
        if account is None:
            self.network = CompiledNetwork(network, weights)
        else:
            deviation = np.sqrt(account.var + account.epsilon)
            self.network = CompiledNetwork(network, weights, account.mean, deviation, account.clip)
        self._choosing = Choosing(
            ACTION_KINDS.index(action["kind"]),
            np.array(action.get("nvec", []), np.int64),
            np.array(action.get("low", []), np.float32),
            np.array(action.get("high", []), np.float32),
        )
        self._window = np.zeros((network["window"], network["columns"]), np.float32)
        self._account = np.zeros(self.network.account_inputs, np.float32)
        self._memory = self.network.memory(1)
        self._room = self.network.room()
        self._outputs = np.zeros((1, self.network.outputs), np.float32)
        self._choices = np.zeros(len(self._choosing.counts), np.int64)
        self._weights = np.zeros(len(self._choosing.low), np.float32)
        # Looking at the types of arguments on every call would take longer than the network.
        self._forward_arguments = (
            self.network.plan,
            self._window.reshape(1, -1),
            self._account[np.newaxis],
            self._memory,
            self._room,
            self._outputs,
        )
        self._choose_arguments = (self._choosing, self._outputs[0], self._choices, self._weights)
        self._forward = resolved(forward_all, *self._forward_arguments)
        self._choose = resolved(choose, *self._choose_arguments)

    @classmethod
    def load(cls, location: ArtifactLocation) -> "PolicyRunner":
        """Open a policy bundle after hashing every member.

        Raises:
            BundleError: a member is missing or changed.
            PolicyError: a member is not what it must be, or they do not fit together.
        """
        verify(location)
        specification = documents.read_document(location.child(SPEC))
        documents.parse(specification, documents.PolicySpecification, f"{location}: {SPEC}")
        normalizer = Normalizer.parse(documents.read_document(location.child(NORMALIZER)))
        weights = documents.read_weights(
            location.child(WEIGHTS), weight_shapes(specification["network"])
        )
        return cls(specification, normalizer, weights)

    @property
    def regimes(self) -> Regimes | None:
        """The regimes of its fold, where it was trained with them."""
        document = self.specification.get("regimes")
        return None if document is None else Regimes.parse(document, SPEC)

    def features(self, dataset: Dataset) -> FloatArray:
        """The dataset's features as this policy sees them: scaled, float32 [T, N * F].

        Raises:
            PolicyError: the dataset has other features or another number of instruments.
            ValueError: it has no inputs for the regimes that the policy was trained with.
        """
        wanted = self.specification["observation"]
        dataset = with_regimes(dataset, self.regimes)
        names, instruments = list(dataset.feature_names), len(dataset.instruments)
        if names != wanted["feature_names"] or instruments != len(wanted["instruments"]):
            raise PolicyError(
                f"the policy sees {wanted['feature_names']} of {len(wanted['instruments'])} "
                f"instrument(s), but the dataset has {names} of {instruments}; use a dataset of "
                "the same feature set and number of series."
            )
        return self.normalizer.transform(dataset.features)

    def reset(self) -> None:
        """Forget what was seen; a slice begins."""
        self._memory[:] = 0.0

    def outputs(self, observation: Observation) -> FloatArray:
        """What the network says of the next observation: float32 [L]. A memory takes it in.

        Args:
            observation: `window` float32 [W, N * F] of scaled features, `account` [5 N + 1].
        """
        self._see(observation)
        outputs: FloatArray = self._outputs[0].copy()
        return outputs

    def act(self, observation: Observation) -> Action:
        """The best action, flat: int64 [parts] choices, or float32 [N] weights.

        Raises:
            PolicyError: an output is not finite.
        """
        self._see(observation)
        if not self._choose(*self._choose_arguments):
            raise _not_finite()
        return self._choices.copy() if len(self._choices) else self._weights.copy()

    def _see(self, observation: Observation) -> None:
        for name, room in (("window", self._window), ("account", self._account)):
            given = observation[name]
            if given.shape != room.shape:
                raise PolicyError(
                    f"the observation's {name} has shape {list(given.shape)}; the policy sees "
                    f"{list(room.shape)}."
                )
            room[...] = given
        self._forward(*self._forward_arguments)

    def trade(
        self,
        account: Account,
        market: Market,
        features: FloatArray,
        rows: tuple[int, int],
        rules: Rules,
        mapping: ActionMapping,
        recorder: Recorder | None = None,
    ) -> Traded:
        """Act on the close of each row of a range; the same bits as bar by bar, in compiled code.

        Args:
            account: one account, changed in place.
            market: T bars.
            features: float32 [T, N * F], scaled.
            rows: the first row that is decided on, and the one after the last.
            rules: costs and limits.
            mapping: of the environment's actions.
            recorder: what it did is added to it; by default only what is returned is kept.

        Returns:
            Equity after each step, fewer than rows if the account was ruined, and how many fills.

        Raises:
            PolicyError: actions, features or rows do not fit, or an output is not finite.
        """
        self._check_trade(market, features, rows, mapping)
        check_account(account, market.instruments, rules)
        flat = np.ascontiguousarray(features, np.float32).reshape(-1)
        orders = Orders.room(1, market.instruments)
        fills = Fills.empty(1, market.instruments)
        blocks, holdings = lanes.room(1, market.instruments)
        first, end = rows
        row = np.array([first])
        recorder = recorder or Recorder(end - first, account)
        begun, filled = recorder.steps, recorder.filled
        # In pieces, so that who cancels does not wait for millions of bars.
        while row[0] < end:
            steps = trade_rows(
                self.network.plan,
                self._choosing,
                self._memory[0],
                self._room,
                self._outputs[0],
                self._choices,
                self._weights,
                flat,
                features.shape[1],
                self._window.reshape(1, -1),
                self._account[np.newaxis],
                rules,
                mapping.choices,
                orders,
                account.balances,
                account.positions,
                account.daily_volume,
                fills.count,
                fills.records,
                market.bars,
                blocks[0],
                holdings[0],
                row,
                recorder.room(min(end - int(row[0]), ROWS_AT_A_TIME)),
            )
            if steps < 0:
                raise _not_finite()
            recorder.advance(steps)
            if account.terminated[0]:
                break
        equity = recorder.equity[begun + 1 : recorder.steps + 1]
        return Traded(equity, recorder.filled - filled)

    def _check_trade(
        self,
        market: Market,
        features: FloatArray,
        rows: tuple[int, int],
        mapping: ActionMapping,
    ) -> None:
        """Refuse what compiled code would read beyond its arrays for."""
        window, columns = self._window.shape
        if not window - 1 <= rows[0] <= rows[1] < market.rows:
            raise PolicyError(
                f"rows {rows[0]} to {rows[1]} of {market.rows} cannot be decided on with a window "
                f"of {window}; begin at row {window - 1} or later and end before the last."
            )
        if features.shape != (market.rows, columns):
            raise PolicyError(
                f"features have shape {features.shape}; {(market.rows, columns)} is expected."
            )
        choices = mapping.choices
        fits = np.array_equal(choices.counts, self._choosing.counts)
        instruments = len(self.specification["observation"]["instruments"])
        if not fits or len(choices.low) != len(self._weights) or market.instruments != instruments:
            raise PolicyError(
                "the environment's actions or number of instruments are not those that the policy "
                "was trained with; use an environment with its own."
            )


def write_policy(
    staging: ArtifactLocation,
    weights: Mapping[str, FloatArray],
    learner: Mapping[str, NDArray[Any]],
    normalizer: Normalizer,
    specification: Mapping[str, Any],
) -> None:
    """Write the deterministic members of a policy bundle into a staging folder.

    Args:
        staging: the folder.
        weights: of the network that acts, under the names of `networks.PolicyNetwork`'s state.
        learner: all that was learned, critics included, under the names of SB3's policy.
        normalizer: of the features, and of the account vector.
        specification: JSON-able; see `policy_documents.PolicySpecification`.
    """
    staging.path.mkdir(parents=True, exist_ok=True)
    for name, arrays in ((WEIGHTS, weights), (LEARNER, learner)):
        contiguous = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
        safetensors.numpy.save_file(contiguous, staging.path / name)
    write_json(staging.child(NORMALIZER), normalizer.document())
    write_json(staging.child(SPEC), specification)


def _not_finite() -> PolicyError:
    return PolicyError(
        "the network gives numbers that are not finite; the features or the account are far "
        "outside of what it was trained on, or its weights are damaged. Train the policy again."
    )
