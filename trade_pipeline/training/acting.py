"""What a policy does and what it expects to earn, for many accounts at once, compiled.

Accounts are cut into chunks, so that the number of threads changes no bit. Knows no torch and no
SB3; `dense_rollout` fills the records below. Start at `act`.
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
from trade_pipeline.training.dense_layers import OUTPUTS, Layers, forward_all, matrix
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
        features: float32 [T * C], scaled; empty where windows lie in `Looked.inputs` already.
        window: int, W * C numbers of it up to an account's row are its window.
        columns: C.
        row: int32 [E, 1], of the last closed bar; [0, 1] with an empty `features`.
        account: float32 [E, A].
        account_scale: float32 [A].
    """

    features: Float32Array
    window: int
    columns: int
    row: NDArray[np.int32]
    account: NDArray[np.float32]
    account_scale: Float32Array


class Looked(NamedTuple):
    """What a look at E accounts gives, float32.

    Attributes:
        inputs: [E, W * C + A], of the first layer.
        actions: [E, parts], choices or numbers.
        values: [E].
        log_probs: [E], of the actions.
    """

    inputs: NDArray[np.float32]
    actions: NDArray[np.float32]
    values: Float32Array
    log_probs: Float32Array


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
        observed: what the accounts see.
        noise: [E, parts], uniform in [0, 1) where actions are choices, standard normal where they
            are numbers.
        looked: filled.
        room: with threads for as many as it has.
        rows: accounts of a chunk.
    """

    layers: Layers
    parameters: Float32Array
    observed: Observed
    noise: NDArray[np.float32]
    looked: Looked
    room: LookingRoom
    rows: int


@compiled
def _fill(observed: Observed, start: int, inputs: NDArray[np.float32]) -> None:
    """Inputs of accounts from `start` on."""
    flat = observed.window * observed.columns
    for row in range(inputs.shape[0]):
        account = start + row
        if observed.features.shape[0] > 0:
            end = (observed.row[account, 0] + 1) * observed.columns
            window = observed.features[end - flat : end]
            for k in range(flat):
                inputs[row, k] = window[k]
        for j in range(observed.account_scale.shape[0]):
            inputs[row, flat + j] = observed.account[account, j] * observed.account_scale[j]


@compiled_apart
def _act_on(look: Look, thread: int, start: int, end: int) -> None:
    """One chunk of accounts."""
    stay_apart()
    layers, parameters, looked, rows = look.layers, look.parameters, look.looked, end - start
    inputs, room = looked.inputs[start:end], look.room
    _fill(look.observed, start, inputs)
    size, at = layers.action[OUTPUTS], layers.deviations
    outputs = matrix(room.outputs[thread], 0, rows, size)
    values = matrix(looked.values, start, rows, 1)
    forward_all(layers, parameters, inputs, room.hidden[thread], outputs, values)
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
    count, threads = look.looked.inputs.shape[0], look.room.outputs.shape[0]
    for chunk in range(thread, (count + look.rows - 1) // look.rows, threads):
        start, end = chunk * look.rows, min((chunk + 1) * look.rows, count)
        _act_on(look, thread, start, end)


@compiled_products_parallel
def _act_on_threads(
    layers: Layers,
    parameters: Float32Array,
    observed: Observed,
    noise: NDArray[np.float32],
    looked: Looked,
    room: LookingRoom,
    rows: int,
) -> None:
    """`_act_of_thread` for each thread; numba hands threads no tuple of tuples."""
    for thread in numba.prange(room.outputs.shape[0]):
        look = Look(layers, parameters, observed, noise, looked, room, rows)
        _act_of_thread(look, int64(thread))


@compiled
def act(look: Look) -> None:
    """Look at accounts, and draw an action for each, into `look.looked`."""
    if look.room.outputs.shape[0] == 1:
        # Threads of numba's would change the number of torch's.
        _act_of_thread(look, int64(0))
    else:
        _act_on_threads(*look)
