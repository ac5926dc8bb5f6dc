"""The forward pass of a policy's network, compiled: the same bits wherever it is computed.

Every sum is taken in one fixed order and each number is rounded where the source says so; hence a
result depends neither on how many observations are asked for at once, nor on threads, nor on the
processor or a library's choice of kernels. All compiled code of policies lives in this file: the
cache of compiled code notices a change of it, and of the simulator. Knows nothing of bundles or of
how weights came about. Start at `forward_one`; `compiled_network` makes its `Plan`.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.simulator.actions import Choices, order_choice, order_weight
from trade_pipeline.simulator.compiled import compiled
from trade_pipeline.simulator.kernel import step_block
from trade_pipeline.simulator.market import FloatArray, IntArray
from trade_pipeline.simulator.observation import account_vector_of, window_of
from trade_pipeline.simulator.orders import Orders
from trade_pipeline.simulator.recording import (
    Record,
    is_full,
    record_fills,
    record_orders,
    record_state,
)
from trade_pipeline.simulator.rules import Rules

Float32Array = NDArray[np.float32]

# Columns of `Plan.stages`.
INPUTS, OUTPUTS, POSITIONS, STRIDE, JOINED, THEN, OFFSET = range(7)
# What is put behind a stage's inputs.
NOTHING, ACCOUNT, MEMORY = range(3)
# What becomes of a stage's sums.
LINEAR, TANH, RELU, GATES = range(4)
ACTIVATIONS = {"tanh": TANH, "relu": RELU}
ACTION_KINDS = ("multi_discrete", "discrete", "binned", "box", "squashed_box")
MULTI_DISCRETE, DISCRETE, BINNED, BOX, SQUASHED_BOX = range(5)

TANH_LIMIT = 10.0  # beyond it the tangent is 1 in float32
HALF, ONE = np.float32(0.5), np.float32(1.0)


class Plan(NamedTuple):
    """A network as compiled code reads it: affine maps one after another.

    A stage maps runs of `inputs` numbers, `stride` apart, to `outputs` numbers each; a convolution
    over bars has a run a position, everything else one in all.

    Attributes:
        stages: int64 [S, 7], columns above.
        weights: float32, of each stage [inputs, outputs] and then its bias [outputs].
        account_mean: float64 [A]; likewise account_deviation.
        account_deviation: as account_mean.
        account_clip: largest normalized value.
        account_scale: float32 [A].
    """

    stages: IntArray
    weights: Float32Array
    account_mean: FloatArray
    account_deviation: FloatArray
    account_clip: float
    account_scale: Float32Array


class Choosing(NamedTuple):
    """How numbers become an action, as compiled code reads it.

    Attributes:
        kind: index into `ACTION_KINDS`.
        counts: int64 [parts] choices of each part; empty for boxes.
        low: float32 [N] bounds of a box; likewise high.
        high: as low.
    """

    kind: int
    counts: IntArray
    low: Float32Array
    high: Float32Array


@compiled
def tanh(x: float) -> float:
    """Hyperbolic tangent in float64, within 5e-9: of an eighth by a fraction, doubled thrice."""
    y = min(max(x, -TANH_LIMIT), TANH_LIMIT) * 0.125
    square = y * y
    above = y * (135135.0 + square * (17325.0 + square * (378.0 + square)))
    below = 135135.0 + square * (62370.0 + square * (3150.0 + square * 28.0))
    above, below = 2.0 * above * below, above * above + below * below
    above, below = 2.0 * above * below, above * above + below * below
    return 2.0 * above * below / (above * above + below * below)


@compiled
def tanh_of_each(values: Float32Array) -> None:
    """In place."""
    for k in range(values.shape[0]):
        values[k] = tanh(values[k])


@compiled
def affine(source: Float32Array, weights: Float32Array, offset: int, target: Float32Array) -> None:
    """`source @ weight + bias`, summed from the bias over the inputs in their order."""
    inputs, outputs = source.shape[0], target.shape[0]
    start = offset + inputs * outputs
    bias = weights[start : start + outputs]
    for j in range(outputs):
        target[j] = bias[j]
    # Four inputs at a time: fewer passes over the target, the same order of summation. Indices
    # that cannot be negative let a loop become vector instructions.
    together = inputs - inputs % 4
    second, third, fourth = np.uint64(outputs), np.uint64(2 * outputs), np.uint64(3 * outputs)
    for i in range(0, together, 4):
        at = offset + i * outputs
        rows = weights[at : at + 4 * outputs]
        a, b, c, d = source[i], source[i + 1], source[i + 2], source[i + 3]
        for j in range(outputs):
            k = np.uint64(j)
            target[k] = (
                target[k]
                + a * rows[k]
                + b * rows[k + second]
                + c * rows[k + third]
                + d * rows[k + fourth]
            )
    for i in range(together, inputs):
        at = offset + i * outputs
        row = weights[at : at + outputs]
        a = source[i]
        for j in range(outputs):
            target[j] += a * row[j]


@compiled
def remember(gates: Float32Array, memory: Float32Array) -> None:
    """A long short-term memory's step: gates [4 H] (input, forget, cell, output), memory [2 H].

    The new hidden state goes into the first H gates, too.
    """
    size = memory.shape[0] // 2
    for k in range(size):
        enter = 0.5 + 0.5 * tanh(0.5 * gates[k])
        keep = 0.5 + 0.5 * tanh(0.5 * gates[size + k])
        leave = 0.5 + 0.5 * tanh(0.5 * gates[3 * size + k])
        cell = keep * memory[size + k] + enter * tanh(gates[2 * size + k])
        memory[size + k] = cell
        memory[k] = leave * tanh(cell)
        gates[k] = memory[k]


@compiled
def forward_one(
    plan: Plan,
    window: Float32Array,
    account: Float32Array,
    memory: Float32Array,
    room: Float32Array,
    outputs: Float32Array,
) -> None:
    """Outputs [L] of one observation; `room` is what `CompiledNetwork.room` gives."""
    source, target = room[0], room[1]
    length = window.shape[0]
    for k in range(length):
        source[k] = window[k]
    for s in range(plan.stages.shape[0]):
        stage = plan.stages[s]
        if stage[JOINED] == ACCOUNT:
            for k in range(account.shape[0]):
                value = (account[k] - plan.account_mean[k]) / plan.account_deviation[k]
                value = min(max(value, -plan.account_clip), plan.account_clip)
                source[length + k] = np.float32(value) * plan.account_scale[k]
        elif stage[JOINED] == MEMORY:
            for k in range(memory.shape[0] // 2):
                source[length + k] = memory[k]
        inputs, size = stage[INPUTS], stage[OUTPUTS]
        for p in range(stage[POSITIONS]):
            start = p * stage[STRIDE]
            run = source[start : start + inputs]
            affine(run, plan.weights, stage[OFFSET], target[p * size : (p + 1) * size])
        length = stage[POSITIONS] * size
        sums = target[:length]
        if stage[THEN] == TANH:
            tanh_of_each(sums)
        elif stage[THEN] == RELU:
            for k in range(length):
                # What is not a number stays that.
                sums[k] = np.float32(0.0) if sums[k] < 0.0 else sums[k]
        elif stage[THEN] == GATES:
            remember(sums, memory)
            length = memory.shape[0] // 2
        source, target = target, source
    for k in range(outputs.shape[0]):
        outputs[k] = source[k]


@compiled
def forward_all(
    plan: Plan,
    window: Float32Array,
    account: Float32Array,
    memory: Float32Array,
    room: Float32Array,
    outputs: Float32Array,
) -> None:
    """`forward_one` for each of E observations."""
    for e in range(window.shape[0]):
        forward_one(plan, window[e], account[e], memory[e], room, outputs[e])


@compiled
def best_of(outputs: Float32Array, first: int, count: int) -> int:
    """Index within [first, first + count) of the largest output; the first wins ties."""
    best = 0
    for k in range(1, count):
        if outputs[first + k] > outputs[first + best]:
            best = k
    return best


@compiled
def choose(
    choosing: Choosing, outputs: Float32Array, choices: IntArray, weights: Float32Array
) -> bool:
    """The action of one observation's outputs: into choices [parts] or weights [N].

    Returns:
        Whether every output is a finite number.
    """
    parts = choosing.counts.shape[0]
    if choosing.kind == MULTI_DISCRETE:
        first = 0
        for part in range(parts):
            choices[part] = best_of(outputs, first, choosing.counts[part])
            first += choosing.counts[part]
    elif choosing.kind == DISCRETE:
        number = best_of(outputs, 0, outputs.shape[0])
        for part in range(parts - 1, -1, -1):
            choices[part] = number % choosing.counts[part]
            number //= choosing.counts[part]
    elif choosing.kind == BINNED:
        for part in range(parts):
            count = choosing.counts[part]
            share = (np.float32(tanh(outputs[part])) + 1.0) / 2.0
            choices[part] = min(max(int(np.floor(share * count)), 0), count - 1)
    else:
        for n in range(weights.shape[0]):
            low, high = choosing.low[n], choosing.high[n]
            weight = outputs[n]
            if choosing.kind == SQUASHED_BOX:
                weight = low + HALF * (np.float32(tanh(weight)) + ONE) * (high - low)
            weights[n] = min(max(weight, low), high)
    finite = True
    for k in range(outputs.shape[0]):
        finite &= bool(np.isfinite(outputs[k]))
    return finite


@compiled
def trade_rows(
    plan: Plan,
    choosing: Choosing,
    memory: Float32Array,
    room: Float32Array,
    outputs: Float32Array,
    picked: IntArray,
    weights: Float32Array,
    features: Float32Array,
    columns: int,
    window: Float32Array,
    seen: Float32Array,
    rules: Rules,
    wanted: Choices,
    orders: Orders,
    balances: Any,
    positions: Any,
    daily_volume: FloatArray,
    fills: IntArray,
    records: Any,
    bars: Any,
    block: Any,
    holdings: Any,
    row: IntArray,
    record: Record,
) -> int:
    """One account decides on the rows from `first` on and is carried to the next, as in a backtest.

    Args:
        plan: the network.
        choosing: how its outputs become an action.
        memory: float32 [memory_size].
        room: of `CompiledNetwork.room`.
        outputs: float32 [L] to write into; likewise picked and weights.
        picked: int64 [parts].
        weights: float32 [N].
        features: float32 [T * C], scaled and flattened.
        columns: C.
        window: float32 [1, W * C] to write into; likewise seen.
        seen: float32 [1, A].
        rules: costs and limits.
        wanted: what an action can ask for.
        orders: [1, N] to write into.
        balances: of the account, with positions and daily_volume.
        positions: [1, N].
        daily_volume: [1, 30].
        fills: int64 [1] to write into: how many the last step had.
        records: FILL [1, 4 N] to write into.
        bars: BAR [T, N].
        block: BLOCK to work in, with holdings [N].
        holdings: HOLDING [N].
        row: int64 [1], the first row that is decided on; becomes the one after the last.
        record: room for n steps.

    Returns:
        Steps made, fewer than n if the last of them ruined the account or the record has no room
        for the fills of another; -1 - steps if an output was not finite.
    """
    balance = balances[0]
    steps = record.equity.shape[0]
    for step in range(steps):
        if is_full(record, positions.shape[1]):
            return step
        window_of(features, row[0], columns, window, 0)
        account_vector_of(balance, positions[0], bars, row[0], seen, 0)
        forward_one(plan, window[0], seen[0], memory, room, outputs)
        if not choose(choosing, outputs, picked, weights):
            return -1 - step
        if picked.shape[0] > 0:
            order_choice(wanted, orders, 0, picked[0], picked[1], picked[2], picked[3])
        else:
            for n in range(weights.shape[0]):
                order_weight(wanted, orders, 0, n, weights[n])
        record_orders(record, orders, positions[0], row[0])
        step_block(
            block,
            holdings,
            balances,
            positions,
            daily_volume,
            fills,
            records,
            rules,
            orders,
            bars,
            row,
        )
        row[0] += 1
        record_state(record, step, balance, positions[0], bars, row[0])
        record_fills(record, step, balance, row[0], fills[0], records[0])
        if balance.terminated:
            return step + 1
    return int(steps)
