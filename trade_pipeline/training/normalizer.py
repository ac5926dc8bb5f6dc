"""How a policy's inputs are scaled: statistics of training, which travel with it as JSON.

Knows nothing of networks. Start at `Normalizer`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.simulator.compiled import compiled
from trade_pipeline.simulator.market import IntArray
from trade_pipeline.training import policy_documents as documents
from trade_pipeline.training.splits import Rows

# The name of the member of a policy bundle.
NORMALIZER = "normalizer.json"

FloatArray = NDArray[np.float32]

# Interquartile range of the standard normal: divided by it, a range is a deviation.
NORMAL_RANGE = 1.349
# Knots of all columns, so that `normalizer.json` stays below what is read of one.
MOST_KNOTS_IN_ALL = 2**18
STANDARD_NORMAL = NormalDist()


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
class Ranks:
    """Maps each column to the standard normal by piecewise linear functions that never fall.

    A value between two knots gets a score between theirs; one beyond the outer knots theirs.

    Attributes:
        knots: float32 [M], increasing within a column.
        scores: float32 [M], not falling within a column.
        starts: int64 [C + 1], where the knots of each column begin, and M.
    """

    knots: FloatArray
    scores: FloatArray
    starts: IntArray

    @classmethod
    def fit(cls, columns: Iterable[FloatArray], count: int) -> "Ranks":
        """Knots of each of `count` columns' values, float32 [rows], see `_knots`.

        As many a column as are allowed, fewer where there are more than 1,024 columns.
        """
        most = min(documents.MOST_KNOTS, max(MOST_KNOTS_IN_ALL // count, 4))
        return cls.join([_knots(column, most) for column in columns])

    @classmethod
    def join(cls, columns: Sequence[tuple[FloatArray, FloatArray]]) -> "Ranks":
        """Knots and scores of the columns one behind the other."""
        knots, scores = ([pair[part] for pair in columns] for part in (0, 1))
        starts = np.cumsum([0, *map(len, knots)], dtype=np.int64)
        return cls(np.concatenate(knots), np.concatenate(scores), starts)

    def transform(self, values: FloatArray) -> FloatArray:
        """Scores float32 [T, C] of float32 [T, C]; what is not a number stays so.

        Raises:
            PolicyError: another number of columns.
        """
        if values.shape[1] != len(self.starts) - 1:
            raise documents.PolicyError(
                f"features have {values.shape[1]} columns; the policy's ranks are of "
                f"{len(self.starts) - 1}. Use features of the same set and number of series."
            )
        found = np.empty(values.shape, np.float32)
        _score(np.ascontiguousarray(values), self.knots, self.scores, self.starts, found)
        return found


@dataclass(frozen=True)
class Normalizer:
    """Scales features elementwise in float32, `(feature - mean) / std`, and maybe the account.

    Attributes:
        mean, std: float32 [N, F]; 0 and 1 where nothing is scaled. Scaling `robust` has the median
            and the interquartile range / 1.349 here.
        account: statistics of the account vector; None leaves it as it is.
        ranks: of the columns [N * F], taken before mean and std, of scaling `rank` alone.
    """

    mean: FloatArray
    std: FloatArray
    account: AccountStatistics | None = None
    ranks: Ranks | None = None

    @classmethod
    def fit(cls, features: FloatArray, segments: Rows, scaling: str) -> "Normalizer":
        """Statistics of the rows of `segments` alone, for each instrument and feature.

        `standard` takes mean and standard deviation; `robust` median and interquartile range,
        which a few extreme rows do not move, and the standard deviation where that range is 0. A
        feature that does not vary there is only centred: its deviation is rounding error.

        `rank` maps each feature to the standard normal by its distribution there, as sklearn's
        `QuantileTransformer(output_distribution="normal")` does, with two differences: equal values
        get the score of their middle rank among all rows, and the outermost that of half a row
        (about 4.1 of 10,000 rows) instead of 5.2. Outer values and all beyond them get the same.
        A feature that does not vary there becomes 0.

        Args:
            features: float32 [T, N, F].
            segments: int64 [K, 2], a fold's training part.
            scaling: `none` (mean 0 and deviation 1), `standard`, `robust` or `rank`.

        Raises:
            PolicyError: the scaling is none of these.
        """
        shape = features.shape[1:]
        mean, std = np.zeros(shape, np.float32), np.ones(shape, np.float32)
        if scaling == "none":
            return cls(mean, std)
        # One at a time: all of them would be the features once more in memory.
        columns = (
            np.concatenate([features[a:b, *index] for a, b in segments])
            for index in np.ndindex(*shape)
        )
        if scaling == "rank":
            return cls(mean, std, ranks=Ranks.fit(columns, mean.size))
        if scaling not in STATISTICS:
            raise documents.PolicyError(
                f"scaling {scaling!r} is unknown; use none, rank, {' or '.join(STATISTICS)}."
            )
        for index, column in zip(np.ndindex(*shape), columns, strict=True):
            mean[index], std[index] = STATISTICS[scaling](column)
        return cls(mean, std)

    def transform(self, features: FloatArray) -> FloatArray:
        """Scaled features, float32 [T, N * F], of float32 [T, N, F].

        Each value by itself: a row has the same bits alone as among others.

        Raises:
            PolicyError: there are ranks, of another number of features or instruments.
        """
        if self.ranks is not None:
            flat = np.asarray(features, np.float32).reshape(len(features), -1)
            return self.ranks.transform(flat)
        scaled = np.asarray(features) - self.mean
        scaled /= self.std
        return np.ascontiguousarray(scaled.reshape(len(features), -1), np.float32)

    def document(self) -> dict[str, Any]:
        """As `normalizer.json` holds it; a float survives JSON exactly."""
        account = self.account
        document: dict[str, Any] = {
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
        if self.ranks is not None:
            document["ranks"] = {
                "knots": self._by_feature(self.ranks.knots),
                "scores": self._by_feature(self.ranks.scores),
            }
        return document

    @classmethod
    def parse(cls, document: Any) -> "Normalizer":
        """The inverse of `document`.

        Raises:
            PolicyError: a key is missing or unknown, or a number is not usable.
        """
        read = documents.parse(document, documents.NormalizerDocument, NORMALIZER)
        account, ranks = read.account, read.ranks
        return cls(
            np.array(read.mean, np.float32),
            np.array(read.std, np.float32),
            None
            if account is None
            else AccountStatistics(
                np.array(account.mean), np.array(account.var), account.epsilon, account.clip
            ),
            None
            if ranks is None
            else Ranks.join(
                [
                    (np.array(knots, np.float32), np.array(scores, np.float32))
                    for rows in zip(ranks.knots, ranks.scores, strict=True)
                    for knots, scores in zip(*rows, strict=True)
                ]
            ),
        )

    def _by_feature(self, numbers: FloatArray) -> list[list[list[float]]]:
        """Numbers of all ranks as a list an instrument, of a list a feature."""
        assert self.ranks is not None
        parts = [part.tolist() for part in np.split(numbers, self.ranks.starts[1:-1])]
        instruments, features = self.mean.shape
        return [parts[n * features : (n + 1) * features] for n in range(instruments)]


def _mean_and_deviation(column: FloatArray) -> tuple[float, float]:
    """Mean, and the standard deviation or 1."""
    average = float(column.mean(dtype=np.float64))
    deviation = float(column.std(dtype=np.float64))
    return average, deviation if _varies(deviation, average) else 1.0


def _median_and_range(column: FloatArray) -> tuple[float, float]:
    """Median, and the interquartile range / 1.349, the standard deviation, or 1."""
    quartiles = np.percentile(column.astype(np.float64), [25, 50, 75])
    low, median, high = (float(quartile) for quartile in quartiles)
    for deviation in ((high - low) / NORMAL_RANGE, float(column.std(dtype=np.float64))):
        if _varies(deviation, median):
            return median, deviation
    return median, 1.0


def _varies(deviation: float, centre: float) -> bool:
    """Whether a deviation is more than what rounding to float32 makes of a constant."""
    return float(np.float32(deviation)) > 1e-6 * abs(centre)


STATISTICS = {"standard": _mean_and_deviation, "robust": _median_and_range}


def _knots(column: FloatArray, most: int) -> tuple[FloatArray, FloatArray]:
    """At most `most` of a column's values, and the standard normal's quantiles of their ranks.

    Where there are more values, those are kept between which the quantiles of `most / 2` even
    steps lie: no row of the column is more than a step from the quantile of its own rank, however
    its values are spread, and values that many rows share keep their neighbours.

    Args:
        column: float32 [rows], at least one.
        most: at least 4.

    Returns:
        Knots and scores, float32.
    """
    # Adding 0 makes one zero of two, of which sorting might leave either.
    values, counts = np.unique(column + np.float32(0), return_counts=True)
    middle = (2 * np.cumsum(counts) - counts) / (2 * len(column))
    kept = np.arange(len(values))
    if len(values) > most:
        lowest, highest = (STANDARD_NORMAL.inv_cdf(middle[end]) for end in (0, -1))
        steps = [STANDARD_NORMAL.cdf(z) for z in np.linspace(lowest, highest, most // 2)]
        above = np.searchsorted(middle, steps)
        kept = np.unique(np.concatenate([above - 1, above]).clip(0, len(values) - 1))
    scores = [STANDARD_NORMAL.inv_cdf(rank) for rank in middle[kept]]
    return values[kept], np.array(scores, np.float32)


@compiled
def _score(
    values: FloatArray, knots: FloatArray, scores: FloatArray, starts: IntArray, found: FloatArray
) -> None:
    """Interpolate in float64 between the knots around each value.

    Args:
        values: float32 [T, C].
        knots: as `Ranks` has them; likewise scores and starts.
        scores: as knots.
        starts: as knots.
        found: float32 [T, C] to write into.
    """
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            value = np.float64(values[row, column])
            low, high = starts[column], starts[column + 1] - 1
            if value <= knots[low]:
                found[row, column] = scores[low]
            elif value >= knots[high]:
                found[row, column] = scores[high]
            else:
                while high - low > 1:
                    middle = (low + high) // 2
                    if knots[middle] <= value:
                        low = middle
                    else:
                        high = middle
                left, base = np.float64(knots[low]), np.float64(scores[low])
                # A part of 1 at most, so that rounding leads past no knot's score.
                part = (value - left) / (np.float64(knots[high]) - left)
                found[row, column] = base + part * (np.float64(scores[high]) - base)
