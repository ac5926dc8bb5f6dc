"""Proof that the comparison with the oracle would notice: each rule of the kernel broken once.

A mutation replaces one text of the kernel's sources, which must occur exactly once there, so that
a mutation cannot rot silently: who rewrites the line rewrites it here. The mutated sources are
imported as a package of their own, without numba, and driven through the random scenarios of
test_oracle. The copy without a mutation agrees with the oracle; every other one does not.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import trade_pipeline.simulator
from trade_pipeline_tests.simulator.test_oracle import run

SOURCES = Path(trade_pipeline.simulator.__path__[0])
SCENARIOS = [*range(1000, 1036), 1068, 1078, 1118]  # the last: liquidations before a stop
STEPS = 80
UNCOMPILED = '''
"""Stands in for `compiled`: numba reads fields of records as attributes, so do these records."""
import functools

import numpy as np


def records(argument):
    if type(argument) is np.ndarray and argument.dtype.names:
        return argument.view(np.recarray)
    if isinstance(argument, tuple) and type(getattr(argument, "steps", None)) is np.ndarray:
        return argument._replace(steps=argument.steps.view(np.recarray))
    return argument


def compiled(function):
    @functools.wraps(function)
    def plain(*arguments):
        return function(*map(records, arguments))

    return plain


compiled_parallel = compiled
'''


class Mutation(NamedTuple):
    name: str
    file: str
    old: str
    new: str


MUTATIONS = [
    Mutation(
        "orders fill at the close",
        "lanes",
        "holding.price[OPEN, k] = bar.open",
        "holding.price[OPEN, k] = bar.close",
    ),
    Mutation(
        "orders fill on untraded bars",
        "orders",
        "target if holding.traded[k] != 0.0 else held",
        "target",
    ),
    Mutation(
        "slippage in favour of the trader",
        "accounting",
        "(slip if quantity > 0 else -slip)",
        "(slip if quantity < 0 else -slip)",
    ),
    Mutation(
        "impact in proportion to the size",
        "costs",
        "rules.impact * math.sqrt(share)",
        "rules.impact * share",
    ),
    Mutation(
        "take-profits slip",
        "accounting",
        "slip = 0.0 if resting else slip",
        "slip = slip",
    ),
    Mutation(
        "take-profits pay as takers",
        "accounting",
        "rate = maker_rate if resting else",
        "rate = taker_rate if resting else",
    ),
    Mutation(
        "fee tiers look back 31 days",
        "state",
        "VOLUME_DAYS = 30",
        "VOLUME_DAYS = 31",
    ),
    Mutation(
        "volume never earns another tier",
        "costs",
        "while tier + 1 < tiers.shape[0] and",
        "while False and",
    ),
    Mutation(
        "the minimum fee wins over the maximum",
        "costs",
        "fee = min(fee, rules.fee_maximum_fraction * notional)",
        "fee = max(min(fee, rules.fee_maximum_fraction * notional), rules.fee_minimum)",
    ),
    Mutation(
        "the fee's scale is forgotten",
        "costs",
        "return scale * fee",
        "return fee",
    ),
    Mutation(
        "scaled prices over unscaled volumes",
        "lanes",
        "holding.volume[k] /= block.price_scale[k]",
        "holding.volume[k] /= 1.0",
    ),
    Mutation(
        "a weekend is one day",
        "accounting",
        "interest = elapsed_ms / YEAR_MS",
        "interest = min(elapsed_ms, 86_400_000.0) / YEAR_MS",
    ),
    Mutation(
        "shorts borrow for nothing",
        "accounting",
        "rate = rules.borrow_rate * short",
        "rate = 0.0",
    ),
    Mutation(
        "cash from short sales earns",
        "accounting",
        "rules.cash_rate * (cash - short)",
        "rules.cash_rate * cash",
    ),
    Mutation(
        "shorts pay funding and longs receive it",
        "accounting",
        "paid = worth * funding",
        "paid = -worth * funding",
    ),
    Mutation(
        "funding at the end of the interval, not at its begin",
        "costs",
        "(end_ms - 1) // every_ms - (start_ms - 1) // every_ms",
        "end_ms // every_ms - start_ms // every_ms",
    ),
    Mutation(
        "targets from the equity after financing",
        "kernel",
        "    finance(block, holdings, rules, lanes)",
        "    finance(block, holdings, rules, lanes)\n"
        "    block.equity[:lanes] -= block.financing[:lanes]",
    ),
    Mutation(
        "lots round to the nearest",
        "costs",
        "np.trunc(quantity / lot_size)",
        "np.round(quantity / lot_size)",
    ),
    Mutation(
        "shorts beyond the position cap",
        "orders",
        "min(max(weight, rules.lowest_weight), rules.highest_weight)",
        "min(weight, rules.highest_weight)",
    ),
    Mutation(
        "the no-trade band keeps exits from trading",
        "orders",
        "small & (held != 0.0) & (target != 0.0)",
        "small & (held != 0.0)",
    ),
    Mutation(
        "turnover cap ignored",
        "orders",
        "if rules.max_turnover > 0:",
        "if False:",
    ),
    Mutation(
        "a flip cut before zero opens the other side",
        "orders",
        "increase = 0.0 if reduction > limit else increase",
        "increase = min(increase, limit)",
    ),
    Mutation(
        "exits need the minimum notional",
        "orders",
        "(reduction * price >= min_notional) | (reduction >= abs(held))",
        "reduction * price >= min_notional",
    ),
    Mutation(
        "increases before the reductions have made room",
        "orders",
        "value(block, holdings, OPEN, lanes)",
        "value(block, holdings, OPEN, lanes)\n"
        "    for holding in holdings:\n"
        "        block.gross[:lanes] += abs(holding.trade[:lanes]) * holding.price[OPEN, :lanes]",
    ),
    Mutation(
        "leverage cap ignored",
        "orders",
        "scaled = (wanted != 0.0) & (gross + wanted > most)",
        "scaled = False",
    ),
    Mutation(
        "growth takes the last fill's price as entry",
        "accounting",
        "entry_after = grown if",
        "entry_after = fill_price if",
    ),
    Mutation(
        "stops rounded towards the entry",
        "orders",
        "np.floor(side * stop / tick_size)",
        "np.ceil(side * stop / tick_size)",
    ),
    Mutation(
        "a take that never rested is a maker",
        "intrabar",
        "rested = (not stopped) & (not set_now)",
        "rested = not stopped",
    ),
    Mutation(
        "gaps fill at the level",
        "intrabar",
        "holding.at[k] = price",
        "holding.at[k] = stop if stopped else take",
    ),
    Mutation(
        "the take-profit before the stop",
        "intrabar",
        "closes = open_now & (side * worst <= side * stop)",
        "closes = open_now & (side * worst <= side * stop) & (not side * best >= side * take)",
    ),
    Mutation(
        "stops sleep on the entry bar",
        "intrabar",
        "closes = open_now & (side * worst <= side * stop)",
        "closes = open_now & (side * worst <= side * stop) & (holding.set_now[k] == 0.0)",
    ),
    Mutation(
        "the stop wins over a nearer liquidation",
        "intrabar",
        "nearer = not (closes & (side * stop >= side * level))",
        "nearer = not closes",
    ),
    Mutation(
        "a liquidation wins over a nearer stop",
        "intrabar",
        "nearer = not (closes & (side * stop >= side * level))",
        "nearer = True",
    ),
    Mutation(
        "liquidation at the level of no margin",
        "intrabar",
        "(1.0 - side * rules.maintenance_margin)",
        "1.0",
    ),
    Mutation(
        "cross margin ignores the maintenance margin",
        "intrabar",
        "margin = rules.maintenance_margin * block.gross[k]",
        "margin = 0.0",
    ),
    Mutation(
        "cross margin at the opens alone",
        "intrabar",
        "rules, EXTREME, lanes",
        "rules, OPEN, lanes",
    ),
    Mutation(
        "what two levels of a bar leave open is not counted",
        "intrabar",
        "both = closes & (side * best >= side * take)",
        "both = False",
    ),
    Mutation(
        "ruin is not floored",
        "accounting",
        "ruined = equity <= 0.0",
        "ruined = False",
    ),
]


@contextmanager
def kernel_with(mutation: Mutation | None, folder: Path) -> Iterator[Any]:
    """The kernel's module, from mutated sources, run as plain python."""
    name = f"mutated_simulator_{abs(hash(mutation))}"
    package = folder / name
    package.mkdir()
    for source in SOURCES.glob("*.py"):
        text = source.read_text()
        if mutation and source.stem == mutation.file:
            found = text.count(mutation.old)
            assert found == 1, f"{mutation.old!r} is {found} times in {source.name}, not once"
            text = text.replace(mutation.old, mutation.new)
        text = text.replace("trade_pipeline.simulator.", f"{name}.")
        (package / source.name).write_text(text)
    (package / "compiled.py").write_text(UNCOMPILED)
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module(f"{name}.kernel")
    finally:
        sys.path.remove(str(folder))
        for module in [module for module in sys.modules if module.startswith(name)]:
            del sys.modules[module]


def agrees(simulator: Any) -> bool:
    """Whether the oracle says the same, to the last bit, in all scenarios."""
    for seed in SCENARIOS:
        with np.errstate(all="ignore"):
            try:
                both = run(seed, 3 if seed % 2 else 1, 1, STEPS, simulator)
            except AssertionError:
                return False
        if both.unequal_bits:
            return False
    return True


def test_the_copy_without_a_mutation_agrees_with_the_oracle(tmp_path: Path) -> None:
    with kernel_with(None, tmp_path) as simulator:
        assert agrees(simulator)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_oracle_notices_that(mutation: Mutation, tmp_path: Path) -> None:
    with kernel_with(mutation, tmp_path) as simulator:
        assert not agrees(simulator), f"nothing notices that {mutation.name}"
