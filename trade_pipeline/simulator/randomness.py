"""Random streams for compiled code, one an environment, each independent of all others.

A stream is a 64-bit counter run through splitmix64 (Steele, Lea and Flood 2014, "Fast splittable
pseudorandom number generators"). What an environment draws depends on its own stream alone, not
on how many environments there are. Start at `streams`.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trade_pipeline.simulator.compiled import compiled

Streams = npt.NDArray[np.uint64]

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
FIRST_MIX = np.uint64(0xBF58476D1CE4E5B9)
SECOND_MIX = np.uint64(0x94D049BB133111EB)
SHIFT_30, SHIFT_27, SHIFT_31, SHIFT_11 = (np.uint64(bits) for bits in (30, 27, 31, 11))


def streams(seed: int | Sequence[int], environments: int) -> Streams:
    """The streams of E environments, uint64 [E].

    Args:
        seed: of all of them, or one for each: environment e of a list begins as the only
            environment of its own seed does.
        environments: E.

    Raises:
        ValueError: if a list has another length, or a seed is negative.
    """
    if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
        if seed < 0:
            raise ValueError(f"seed {seed} is negative; it must be 0 or more")
        words = np.random.SeedSequence(int(seed)).generate_state(environments, np.uint64)
        return words.astype(np.uint64)
    if isinstance(seed, str | bool) or not np.iterable(seed):
        raise ValueError(
            f"seed is {seed!r}; a whole number, or one for each environment, is needed"
        )
    wrong = [one for one in seed if not isinstance(one, int | np.integer)]
    if wrong:
        raise ValueError(f"seed {wrong[0]!r} is no whole number")
    if len(seed) != environments:
        raise ValueError(f"{len(seed)} seeds for {environments} environments; give one for each")
    return np.concatenate([streams(int(one), 1) for one in seed])


@compiled
def next_unit(streams: Streams, e: int) -> float:
    """The next number of stream e, uniform over [0, 1)."""
    state = streams[e] + GOLDEN_GAMMA
    streams[e] = state
    state = (state ^ (state >> SHIFT_30)) * FIRST_MIX
    state = (state ^ (state >> SHIFT_27)) * SECOND_MIX
    state = state ^ (state >> SHIFT_31)
    return float(state >> SHIFT_11) * 2.0**-53


@compiled
def next_below(streams: Streams, e: int, count: int) -> int:
    """The next whole number of stream e, uniform over [0, count)."""
    return int(next_unit(streams, e) * count)


@compiled
def next_factor(streams: Streams, e: int, lowest: float, highest: float) -> float:
    """The next factor of stream e, log-uniform over [lowest, highest]."""
    return float(lowest * (highest / lowest) ** next_unit(streams, e))
