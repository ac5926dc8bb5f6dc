"""What a policy does and what it expects to earn, for many accounts at once, compiled.

A window is the same whatever its account does, so first layers are applied to windows some steps
ahead, many at a time. Results do not depend on how many go together, so neither that nor the number
of threads changes a bit. Knows no torch and no SB3; `dense_rollout` fills the records below. Start
at `act`.
"""

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from trade_pipeline.simulator.compiled import (
    compiled,
    compiled_apart,
    compiled_products,
    compiled_products_parallel,
    int64,
    stay_apart,
)
from trade_pipeline.simulator.market import IntArray
from trade_pipeline.training.dense_layers import OUTPUTS, Layers, forward_all, matrix, sum_windows
from trade_pipeline.training.distributions import (
    draw_choices,
    log_probs_of_choices,
    log_probs_of_numbers,
    softmax_of_choices,
)
from trade_pipeline.training.inference import Float32Array


class Observed(NamedTuple):
    """What E accounts see.

    Attributes:
        row: int32 [E, 1], of the last closed bar, where windows end.
        account: float32 [E, A].
        account_scale: float32 [A].
        window: rows, W.
        columns: of a row of features, C.
    """

    row: NDArray[np.int32]
    account: NDArray[np.float32]
    account_scale: Float32Array
    window: int
    columns: int


class Looked(NamedTuple):
    """What a look at E accounts gives.

    Attributes:
        places: int64 [E], where their windows begin in the features.
        accounts: float32 [E, A], scaled.
        actions: float32 [E, parts], choices or numbers.
        values: float32 [E].
        log_probs: float32 [E], of the actions.
    """

    places: IntArray
    accounts: NDArray[np.float32]
    actions: NDArray[np.float32]
    values: Float32Array
    log_probs: Float32Array

    def between(self, first: int, last: int) -> "Looked":
        """Accounts [first, last), the same memory."""
        return Looked(
            self.places[first:last],
            self.accounts[first:last],
            self.actions[first:last],
            self.values[first:last],
            self.log_probs[first:last],
        )


class LookingRoom(NamedTuple):
    """Where a look works, per thread.

    Attributes:
        hidden: float32 [threads, T, S, rows * widest].
        outputs: float32 [threads, rows * L].
        log_shares: float32 [threads, rows * L], of options; likewise `shares`.
        shares: probabilities of options.
        numbers: float64 [threads, rows].
    """

    hidden: NDArray[np.float32]
    outputs: NDArray[np.float32]
    log_shares: NDArray[np.float32]
    shares: NDArray[np.float32]
    numbers: NDArray[np.float64]


class Look(NamedTuple):
    """A look at accounts, as `act` takes it.

    Attributes:
        layers: where parameters are.
        parameters: of the policy.
        features: float32 [T * C], scaled.
        observed: what accounts see.
        expected: int64 [n], where windows begin whose sums are known; -1: none.
        sums: float32 [T, n, H], see `look_ahead`.
        at: where those of this step begin in both.
        noise: [E, parts], uniform in [0, 1) where actions are choices, standard normal where they
            are numbers.
        looked: filled.
        room: with threads for as many as it has.
        rows: accounts of a chunk.
    """

    layers: Layers
    parameters: Float32Array
    features: Float32Array
    observed: Observed
    expected: IntArray
    sums: NDArray[np.float32]
    at: int
    noise: NDArray[np.float32]
    looked: Looked
    room: LookingRoom
    rows: int


@compiled_products
def _sums_of_thread(
    layers: Layers,
    parameters: Float32Array,
    features: Float32Array,
    places: IntArray,
    sums: NDArray[np.float32],
    thread: int,
    threads: int,
) -> None:
    """A thread's part of `look_ahead`."""
    count = places.shape[0]
    first, last = count * thread // threads, count * (thread + 1) // threads
    for trunk in range(sums.shape[0]):
        sum_windows(
            layers, trunk, parameters, features, places[first:last], sums[trunk, first:last]
        )


@compiled_products_parallel
def _sums_on_threads(
    layers: Layers,
    parameters: Float32Array,
    features: Float32Array,
    places: IntArray,
    sums: NDArray[np.float32],
    threads: int,
) -> None:
    """`_sums_of_thread` for each thread."""
    for thread in numba.prange(threads):
        _sums_of_thread(layers, parameters, features, places, sums, int64(thread), threads)


@compiled
def look_ahead(
    layers: Layers,
    parameters: Float32Array,
    features: Float32Array,
    places: IntArray,
    sums: NDArray[np.float32],
    threads: int,
) -> None:
    """What each trunk's first layer makes of windows.

    Args:
        layers: where parameters are.
        parameters: of the policy.
        features: float32 [T * C], scaled.
        places: int64 [n], where windows begin.
        sums: float32 [T, at least n, H], filled.
        threads: that windows are spread over.
    """
    if threads == 1:
        # Threads of numba's would change the number of torch's.
        _sums_of_thread(layers, parameters, features, places, sums, int64(0), int64(1))
    else:
        _sums_on_threads(layers, parameters, features, places, sums, threads)


@compiled_products
def _see(look: Look, hidden: NDArray[np.float32], start: int, end: int) -> None:
    """What first layers make of the windows of accounts, into their hidden values."""
    observed, looked = look.observed, look.looked
    for account in range(start, end):
        first = observed.row[account, 0] + 1 - observed.window
        looked.places[account] = first * observed.columns
        for k in range(observed.account_scale.shape[0]):
            scaled = observed.account[account, k] * observed.account_scale[k]
            looked.accounts[account, k] = scaled
    for trunk in range(look.sums.shape[0]):
        target = matrix(hidden[trunk, 0], 0, end - start, look.sums.shape[2])
        for account in range(start, end):
            own = target[account - start : account - start + 1]
            if looked.places[account] == look.expected[look.at + account]:
                known = look.sums[trunk, look.at + account]
                for j in range(known.shape[0]):
                    own[0, j] = known[j]
            else:
                place = looked.places[account : account + 1]
                sum_windows(look.layers, trunk, look.parameters, look.features, place, own)


@compiled_apart
def _act_on(look: Look, thread: int, start: int, end: int) -> None:
    """One chunk of accounts."""
    stay_apart()
    layers, parameters, looked, rows = look.layers, look.parameters, look.looked, end - start
    room, hidden = look.room, look.room.hidden[thread]
    _see(look, hidden, start, end)
    size, at = layers.action[OUTPUTS], layers.deviations
    outputs = matrix(room.outputs[thread], 0, rows, size)
    values = matrix(looked.values, start, rows, 1)
    forward_all(layers, parameters, looked.accounts[start:end], hidden, outputs, values)
    actions, drawn = looked.actions[start:end], look.noise[start:end]
    numbers = room.numbers[thread, :rows]
    if at < 0:
        counts = layers.counts
        log_shares = matrix(room.log_shares[thread], 0, size, rows)
        shares = matrix(room.shares[thread], 0, size, rows)
        softmax_of_choices(counts, outputs, log_shares, shares, numbers)
        draw_choices(counts, shares, drawn, actions, numbers)
        log_probs_of_choices(counts, log_shares, actions, numbers)
    else:
        log_deviations = parameters[at : at + size]
        for j in range(size):
            deviation = np.exp(log_deviations[j])
            for row in range(rows):
                actions[row, j] = outputs[row, j] + deviation * drawn[row, j]
        log_probs_of_numbers(log_deviations, outputs, actions, numbers)
    for row in range(rows):
        looked.log_probs[start + row] = numbers[row]


@compiled_products
def _act_of_thread(look: Look, thread: int) -> None:
    """Each chunk of a thread."""
    count, threads = look.looked.places.shape[0], look.room.outputs.shape[0]
    for chunk in range(thread, (count + look.rows - 1) // look.rows, threads):
        start, end = chunk * look.rows, min((chunk + 1) * look.rows, count)
        _act_on(look, thread, start, end)


@compiled_products_parallel
def _act_on_threads(
    layers: Layers,
    parameters: Float32Array,
    features: Float32Array,
    observed: Observed,
    expected: IntArray,
    sums: NDArray[np.float32],
    at: int,
    noise: NDArray[np.float32],
    looked: Looked,
    room: LookingRoom,
    rows: int,
) -> None:
    """`_act_of_thread` for each thread; numba hands threads no tuple of tuples."""
    for thread in numba.prange(room.outputs.shape[0]):
        look = Look(
            layers, parameters, features, observed, expected, sums, at, noise, looked, room, rows
        )
        _act_of_thread(look, int64(thread))


@compiled
def act(look: Look) -> None:
    """Look at accounts, and draw an action for each, into `look.looked`."""
    if look.room.outputs.shape[0] == 1:
        _act_of_thread(look, int64(0))
    else:
        _act_on_threads(*look)
