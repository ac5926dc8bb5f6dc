"""How a policy's inputs are scaled: statistics of training, which travel with it as JSON.

Knows nothing of networks. Start at `Normalizer`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.training import policy_documents as documents
from trade_pipeline.training.splits import Rows

# The name of the member of a policy bundle.
NORMALIZER = "normalizer.json"

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class AccountStatistics:
    """Scales the account vector as SB3's VecNormalize does, in float64, rounded to float32.

    Attributes:
        mean: float64 [A]; likewise var.
        var: as mean.
        epsilon: added to the variance.
        clip: largest normalized value.
    """

    mean: NDArray[np.float64]
    var: NDArray[np.float64]
    epsilon: float
    clip: float


@dataclass(frozen=True)
class Normalizer:
    """Scales features elementwise in float32, `(feature - mean) / std`, and maybe the account.

    Attributes:
        mean, std: float32 [N, F]; 0 and 1 where nothing is scaled.
        account: statistics of the account vector; None leaves it as it is.
    """

    mean: FloatArray
    std: FloatArray
    account: AccountStatistics | None = None

    @classmethod
    def fit(cls, features: FloatArray, segments: Rows, scaling: str) -> "Normalizer":
        """Statistics of the rows of `segments` alone, one pair per instrument and feature.

        A feature that does not vary there is only centred: its deviation is rounding error.

        Args:
            features: float32 [T, N, F].
            segments: int64 [K, 2], a fold's training part.
            scaling: `standard`, or `none` for mean 0 and deviation 1.
        """
        shape = features.shape[1:]
        mean, std = np.zeros(shape, np.float32), np.ones(shape, np.float32)
        if scaling == "none":
            return cls(mean, std)
        for index in np.ndindex(*shape):
            column = np.concatenate([features[a:b, *index] for a, b in segments])
            average = column.mean(dtype=np.float64)
            deviation = column.std(dtype=np.float64)
            mean[index] = average
            if np.float32(deviation) > 1e-6 * abs(average):
                std[index] = deviation
        return cls(mean, std)

    def transform(self, features: FloatArray) -> FloatArray:
        """Scaled features, float32 [T, N * F], of float32 [T, N, F]."""
        scaled = (np.asarray(features) - self.mean) / self.std
        return np.ascontiguousarray(scaled.reshape(len(features), -1), np.float32)

    def document(self) -> dict[str, Any]:
        """As `normalizer.json` holds it; a float survives JSON exactly."""
        account = self.account
        return {
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "account": None
            if account is None
            else {
                "mean": account.mean.tolist(),
                "var": account.var.tolist(),
                "epsilon": account.epsilon,
                "clip": account.clip,
            },
        }

    @classmethod
    def parse(cls, document: Any) -> "Normalizer":
        """The inverse of `document`.

        Raises:
            PolicyError: a key is missing or unknown, or a number is not usable.
        """
        read = documents.parse(document, documents.NormalizerDocument, NORMALIZER)
        account = read.account
        return cls(
            np.array(read.mean, np.float32),
            np.array(read.std, np.float32),
            None
            if account is None
            else AccountStatistics(
                np.array(account.mean), np.array(account.var), account.epsilon, account.clip
            ),
        )
