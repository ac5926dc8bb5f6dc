"""What is going on in a training: rows of numbers, gradient norms, action shares, TensorBoard.

Watches and never steers: a training with and without it gives the same bytes. Knows no files but
TensorBoard's, no bundles and no clock. Start at `Diagnostics`; `warnings_of` says what is wrong.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from stable_baselines3.common.logger import KVWriter
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from torch.utils.tensorboard import SummaryWriter

from trade_pipeline.simulator.actions import ACTION_KEYS, DIRECTIONS
from trade_pipeline.training.gradients import GradientNorms as GradientNorms

# SB3's groups, which say nothing that the names do not; other groups stay part of a name.
SB3_GROUPS = ("train", "rollout", "eval")
ROLLOUT = ("ep_rew_mean", "ep_len_mean", "success_rate", "exploration_rate")
WEIGHT_BINS = 30  # of a histogram, over all that a weight may be
FLUSH_SECONDS = 5  # TensorBoard's files are behind by no more, and a row

# Thresholds of warnings, tried on healthy and on spoiled trainings of all algorithms.
LAST_ROWS = 5  # one odd row is chance, or the first steps of a network
KL_LIMIT = 0.1  # ten times what a healthy PPO has
KL_OVER_TARGET = 1.5  # where PPO itself breaks an update off
KL_SPIKE = 10.0  # limits; once is enough, since a policy that jumped has collapsed in the next row
GRADIENT_LIMIT = 1e3  # of any layer
GRADIENT_JUMP = 100.0  # times the median before
GRADIENT_HARMLESS = 1.0  # jumps up to here begin near 0
COLLAPSED_SHARE = 0.99
COLLAPSED_DEVIATION = 0.01  # of weights, fractions of equity
COLLAPSED_ENTROPY = 0.02  # nats, summed over all choices: the likeliest action has 99.7 %


class Diagnostics(KVWriter):
    """Keeps what is recorded of a training, one row a number of frames.

    SB3's logger writes here what an algorithm says of its updates. All say `ep_rew_mean`,
    `ep_len_mean`, `learning_rate` and `n_updates`; besides

    - ppo, recurrent_ppo: `loss`, `policy_gradient_loss`, `value_loss`, `entropy_loss`, `approx_kl`,
      `clip_fraction`, `clip_range`, `explained_variance`, and `std` with weights;
    - a2c: `policy_loss`, `value_loss`, `entropy_loss`, `explained_variance`, `std` with weights;
    - dqn: `loss`, `exploration_rate`;
    - sac: `actor_loss`, `critic_loss`, `ent_coef`, `ent_coef_loss` where the entropy adapts;
    - td3: `actor_loss`, `critic_loss`.

    Attributes:
        rows: frames to name to value; what was not taken is missing.
    """

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}
        self._followers: list[Callable[[int, str, float], None]] = []

    def record(self, frames: int, name: str, value: float | None) -> None:
        """Put one value into the row of `frames`; None is what could not be taken."""
        if value is None:
            return
        self.rows.setdefault(frames, {})[name] = float(value)
        for follower in self._followers:
            follower(frames, name, float(value))

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """Called by SB3's logger; its clock readings are left out."""
        for key, value in key_values.items():
            group, _, rest = key.partition("/")
            name = rest if group in SB3_GROUPS else key
            if group == "time" or not isinstance(value, int | float | np.number):
                continue
            # Undefined, not wrong: the returns of a rollout without any variance.
            if name == "explained_variance" and math.isnan(value):
                continue
            self.record(step, name, float(value))

    def follow(self, follower: Callable[[int, str, float], None]) -> None:
        """Tell `follower` frames, name and value of all there is and of all that will come."""
        for frames, name, value in self:
            follower(frames, name, value)
        self._followers.append(follower)

    def __iter__(self) -> Iterator[tuple[int, str, float]]:
        for frames in sorted(self.rows):
            for name, value in self.rows[frames].items():
                yield frames, name, value

    def values(self, name: str) -> list[tuple[int, float]]:
        """Frames and value of each row that has `name`, in order."""
        return [(at, self.rows[at][name]) for at in sorted(self.rows) if name in self.rows[at]]

    def names(self) -> list[str]:
        """Of all that was taken, sorted."""
        return sorted({name for row in self.rows.values() for name in row})

    def state(self) -> dict[str, Any]:
        """All rows, JSON-able and strictly so: what is not finite is text."""
        return {
            "rows": [
                [at, {name: _written(value) for name, value in self.rows[at].items()}]
                for at in sorted(self.rows)
            ]
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> "Diagnostics":
        """The rows that `state` gave."""
        made = cls()
        for frames, row in state["rows"]:
            made.rows[frames] = {name: float(value) for name, value in row.items()}
        return made

    def frame(self) -> pl.DataFrame:
        """One row a number of frames, ascending: `frames` Int64, others Float64 by name.

        Null is what was not taken, NaN what was taken and is no number.
        """
        frames = sorted(self.rows)
        columns = {
            name: pl.Series(name, [self.rows[at].get(name) for at in frames], pl.Float64)
            for name in self.names()
        }
        return pl.DataFrame({"frames": pl.Series(frames, dtype=pl.Int64), **columns})

    def close(self) -> None:
        """Nothing to close."""


def _written(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def action_shares(actions: NDArray[Any], action: Mapping[str, Any]) -> dict[str, float]:
    """What a rollout's actions are made of.

    Args:
        actions: [n, parts] or [steps, environments, parts], as the environment takes them:
            choices of `ACTION_KEYS`, or weights of N instruments, cut to their bounds here.
        action: the `action` of a specification.

    Returns:
        For choices the share of each, such as `action/direction_long` or `action/stop_loss_0`.
        For weights by instrument `action/weight_mean_0`, `action/weight_absolute_0` and
        `action/weight_deviation_0`, and `action/at_bound`, the share of weights at a bound.
        Empty without actions.
    """
    parts = np.asarray(actions).reshape(-1, np.shape(actions)[-1])
    if len(parts) == 0:
        return {}
    if "nvec" in action:
        return {
            f"action/{key}_{DIRECTIONS[choice] if key == 'direction' else choice}": float(share)
            for key, choices, column in zip(ACTION_KEYS, action["nvec"], parts.T, strict=True)
            for choice, share in enumerate(
                np.bincount(column.astype(np.int64), minlength=choices) / len(column)
            )
        }
    low, high = np.array(action["low"], np.float64), np.array(action["high"], np.float64)
    weights = np.clip(parts.astype(np.float64), low, high)
    by_instrument = {
        "mean": weights.mean(axis=0),
        "absolute": np.abs(weights).mean(axis=0),
        "deviation": weights.std(axis=0),
    }
    shares = {
        f"action/weight_{name}_{number}": float(value)
        for name, values in by_instrument.items()
        for number, value in enumerate(values)
    }
    return shares | {"action/at_bound": float(((weights == low) | (weights == high)).mean())}


class TensorBoardWriter(KVWriter):
    """Writes all that a `Diagnostics` holds and will hold as scalars into a TensorBoard folder."""

    def __init__(self, folder: str, diagnostics: Diagnostics) -> None:
        self._writer = SummaryWriter(folder, flush_secs=FLUSH_SECONDS)
        self._waiting: tuple[int, list[Summary.Value]] = (0, [])
        diagnostics.follow(self._scalar)

    def add(self, frames: int, values: Iterable[Summary.Value]) -> None:
        """Put values into the row of `frames`."""
        # A row is one event: an event for each of its numbers would cost as much as the learning.
        if frames != self._waiting[0]:
            self._write_row()
            self._waiting = (frames, [])
        self._waiting[1].extend(values)

    def _scalar(self, frames: int, name: str, value: float) -> None:
        self.add(frames, [Summary.Value(tag=_tag(name), simple_value=value)])

    def _write_row(self) -> None:
        frames, values = self._waiting
        if values:
            file: Any = self._writer.file_writer
            file.add_summary(Summary(value=values), frames)
        self._waiting = (frames, [])

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """Write the row that `Diagnostics` was told before; called by SB3's logger at its end."""
        self._write_row()

    def close(self) -> None:
        """Write out what is waiting and close the file."""
        self._write_row()
        self._writer.close()


def tensorboard_writer(folder: str, diagnostics: Diagnostics) -> TensorBoardWriter:
    """A writer for SB3's logger, beside `diagnostics` itself.

    A folder begins with all rows so far, so that the curves of a resumed training are whole.

    Args:
        folder: is made; what lies there stays.
        diagnostics: the only source of scalars, so that both say the same.
    """
    return TensorBoardWriter(folder, diagnostics)


def _tag(name: str) -> str:
    """TensorBoard groups its charts by what stands before the first slash."""
    if "/" in name:
        return name
    if name.startswith("validation_"):
        return name.replace("_", "/", 1)
    return f"rollout/{name}" if name in ROLLOUT else f"train/{name}"


def action_histograms(actions: NDArray[Any], action: Mapping[str, Any]) -> list[Summary.Value]:
    """Histograms of a rollout's actions by part: `action/direction`, or `action/weight_0`.

    Args:
        actions: as for `action_shares`.
        action: the `action` of a specification.

    Returns:
        What TensorBoard shows, see `TensorBoardWriter.add`; empty without actions.
    """
    parts = np.asarray(actions).reshape(-1, np.shape(actions)[-1])
    if len(parts) == 0:
        return []
    if "nvec" in action:
        columns = zip(ACTION_KEYS, action["nvec"], parts.T.astype(np.int64), strict=True)
        return [
            _histogram(
                f"action/{key}",
                column,
                np.arange(choices + 1) - 0.5,
                np.bincount(column, minlength=choices),
            )
            for key, choices, column in columns
        ]
    low, high = np.array(action["low"], np.float64), np.array(action["high"], np.float64)
    weights = np.clip(parts.astype(np.float64), low, high)
    bins = np.minimum((weights - low) / (high - low) * WEIGHT_BINS, WEIGHT_BINS - 1).astype(
        np.int64
    )
    numbers = np.arange(len(low))
    counted = np.bincount(
        (numbers * WEIGHT_BINS + bins).ravel(), minlength=len(low) * WEIGHT_BINS
    ).reshape(-1, WEIGHT_BINS)
    return [
        _histogram(
            f"action/weight_{number}",
            weights[:, number],
            np.linspace(low[number], high[number], WEIGHT_BINS + 1),
            counted[number],
        )
        for number in numbers.tolist()
    ]


def _histogram(
    tag: str, values: NDArray[Any], edges: NDArray[np.float64], counts: NDArray[np.int64]
) -> Summary.Value:
    """How many values lie between two edges each."""
    histogram = HistogramProto(
        min=float(values.min()),
        max=float(values.max()),
        num=len(values),
        sum=float(values.sum()),
        sum_squares=float((values * values).sum()),
        bucket_limit=edges.tolist(),
        bucket=[0, *counts.tolist()],
    )
    return Summary.Value(tag=tag, histo=histogram)


def warnings_of(diagnostics: Diagnostics, target_kl: float | None = None) -> dict[str, str]:
    """What is wrong with a training so far: what was seen, after how many frames, what to try.

    Args:
        diagnostics: rows of SB3, `action_shares`, `GradientNorms`, and `validation_fills`.
        target_kl: the algorithm's, where it has one.

    Returns:
        Key to sentence. A key is the same complaint at every look, whatever its figures: log one
        that was not there before.
    """
    found = {
        "not_finite": _not_finite(diagnostics),
        "kl_runaway": _kl_runaway(diagnostics, target_kl),
        "exploding_gradient": _exploding_gradient(diagnostics),
        "collapsed": _collapsed(diagnostics),
        "explained_variance": _unexplained(diagnostics),
        "no_trades": _no_trades(diagnostics),
    }
    return {key: sentence for key, sentence in found.items() if sentence is not None}


def _not_finite(diagnostics: Diagnostics) -> str | None:
    for frames, name, value in diagnostics:
        if not math.isfinite(value):
            return (
                f"not a number: {name} is {value} after {frames} frames; lower learning_rate or "
                "reward_scale, and look for features or prices that are not finite."
            )
    return None


def _kl_runaway(diagnostics: Diagnostics, target_kl: float | None) -> str | None:
    limit = KL_LIMIT if target_kl is None else KL_OVER_TARGET * target_kl
    rows = diagnostics.values("approx_kl")
    for number, (frames, value) in enumerate(rows):
        last = [kl for _, kl in rows[max(0, number + 1 - LAST_ROWS) : number + 1]]
        lasting = len(last) == LAST_ROWS and float(np.median(last)) > limit
        if lasting or value > KL_SPIKE * limit:
            return (
                f"KL runaway: approx_kl is {value:.3g} after {frames} frames, {limit:.3g} is much; "
                "one update changes the policy too far to learn from its own rollout. Lower "
                "learning_rate or epochs, raise batch_size, or set target_kl."
            )
    return None


def _exploding_gradient(diagnostics: Diagnostics) -> str | None:
    before: dict[str, list[float]] = {}
    for frames, name, value in diagnostics:
        if not name.startswith("gradient_norm/"):
            continue
        past = before.setdefault(name, [])
        usual = float(np.median(past)) if len(past) >= LAST_ROWS else math.inf
        jumped = value > GRADIENT_JUMP * usual and value > GRADIENT_HARMLESS
        if jumped or value > GRADIENT_LIMIT:
            return (
                f"exploding gradient: the norm of {name.partition('/')[2]} is {value:.3g} after "
                f"{frames} frames"
                + (f", {usual:.3g} before" if jumped else "")
                + "; lower learning_rate or reward_scale, or set normalize.reward: true."
            )
        past.append(value)
    return None


def _collapsed(diagnostics: Diagnostics) -> str | None:
    """Of the last rows only: TD3 begins at a corner and leaves it."""
    remedy = (
        "; raise entropy_coefficient (dqn: exploration_final, td3: action_noise), lower "
        "learning_rate, and see whether costs leave anything to earn."
    )
    # What dqn does at random hides what it does on purpose.
    random = [share for _, share in diagnostics.values("exploration_rate")[-1:]]
    purpose = 1.0 - (random[0] if random else 0.0)
    directions = [name for name in DIRECTIONS if diagnostics.values(f"action/direction_{name}")]
    for direction in directions:
        rows = diagnostics.values(f"action/direction_{direction}")[-LAST_ROWS:]
        limit = COLLAPSED_SHARE * purpose + (1.0 - purpose) / len(directions)
        if len(rows) == LAST_ROWS and min(share for _, share in rows) >= limit:
            return (
                f"policy collapsed to one action: {rows[-1][1]:.1%} of all directions are "
                f"{direction} in the last {LAST_ROWS} rows, up to {rows[-1][0]} frames" + remedy
            )
    deviations = [
        diagnostics.values(name)[-LAST_ROWS:]
        for name in diagnostics.names()
        if name.startswith("action/weight_deviation_")
    ]
    if deviations and all(len(rows) == LAST_ROWS for rows in deviations):
        widest = max(value for rows in deviations for _, value in rows)
        if widest < COLLAPSED_DEVIATION:
            return (
                f"policy collapsed to one action: no weight deviates by more than {widest:.2g} in "
                f"the last {LAST_ROWS} rows, up to {deviations[0][-1][0]} frames" + remedy
            )
    # The entropy of weights is that of a density and may well be 0; `std` tells them apart.
    rows = [] if diagnostics.values("std") else diagnostics.values("entropy_loss")[-LAST_ROWS:]
    if len(rows) == LAST_ROWS and max(-value for _, value in rows) < COLLAPSED_ENTROPY:
        return (
            f"policy collapsed to one action: its entropy is {-rows[-1][1]:.2g} after "
            f"{rows[-1][0]} frames" + remedy
        )
    return None


def _unexplained(diagnostics: Diagnostics) -> str | None:
    rows = diagnostics.values("explained_variance")[-LAST_ROWS:]
    if len(rows) < LAST_ROWS or (median := float(np.median([v for _, v in rows]))) >= -1.0:
        return None
    return (
        f"value function worse than none: explained_variance is {median:.3g} (median of the last "
        f"{LAST_ROWS} rows, up to {rows[-1][0]} frames), and a constant has 0; raise reward_scale "
        "or set normalize.reward: true, or lower learning_rate."
    )


def _no_trades(diagnostics: Diagnostics) -> str | None:
    looks = diagnostics.values("validation_fills")
    if not looks or looks[-1][1] > 0:
        return None
    return (
        f"no trades: the policy traded nothing on validation after {looks[-1][0]} frames; "
        "explore more (entropy_coefficient, exploration_final or action_noise), train longer, and "
        "see whether costs leave anything to earn."
    )
