"""Whether a trading environment shows what its agent cannot know yet.

The rows of the frame that lie in the future are changed, and the same actions taken again: until
the agent may know the first changed row, it must see the same. Start at `audit_environment`.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.features.audit.frames import changed_rows
from trade_pipeline.features.audit.report import Audit, Finding, Verdict, name_of, shown, told

ROWS_TRIED = 8
LOCATED = 16  # findings whose row is searched for; of others the first changed row is told
END = "the end of the episode"

Parts = dict[str, NDArray[Any]]


class _Moment(NamedTuple):
    """What the agent saw after a step: the parts of its observation, and how many rows it knew."""

    seen: Parts
    rows: int
    ended: bool


class _Episode(NamedTuple):
    """One episode, its actions, and why it broke off, if it did."""

    moments: list[_Moment]
    actions: list[Any]
    broken: str


def audit_environment(
    make: Callable[[Any], Any],
    frame: Any,
    seen_rows: Callable[[Any], int],
    steps: int = 1_000,
    rows: Sequence[int] | None = None,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    change: Callable[[Any, int, int], Any] = changed_rows,
) -> Audit:
    """Change all rows from one on, and compare every observation before the agent may know it.

    Args:
        make: frame to a Gymnasium environment, features and all: what `make` computes is audited
            too. It must not keep the frame from one call to the next.
        frame: pandas or polars, rows in order of time.
        seen_rows: environment, after `reset` or a step, to how many rows its agent may know.
        steps: of the one episode that is played, at most; actions are drawn from its action space.
        rows: first rows to be changed; None: 8 spread over those that the episode reaches. A
            leak at rare rows needs all of them: `range(len(frame))`.
        seed: of `reset`, of the actions, and of the global generators of random and numpy, which
            are put back afterwards.
        options: of `reset`.
        change: (frame, first, end) to a copy whose rows `first` to `end` differ.

    Returns:
        One finding a part of the observation: the first step that shows it, and the row it has
        read. An environment that shows something else when nothing is changed is
        `not deterministic`; one that raises before anything could be compared is `failed`.
    """
    player = _Player(make, seen_rows, steps, seed, options)
    subject = f"environment {name_of(make)}"
    base = player.play(frame, None)
    if not base.moments:
        return Audit(subject, "failed", (), f"It {base.broken}.")
    reached = [moment.rows for moment in base.moments]
    notes = [f"It {base.broken}."] if base.broken else []
    if base.moments[-1].ended and len(base.actions) < steps and reached[-1] < len(frame):
        notes.append(
            f"The episode ended at step {len(base.actions)}, {reached[-1]} of {len(frame)} rows "
            "known; what comes after was not tried."
        )
    again = _differences(base.moments, player.play(frame, base.actions).moments, None)
    if again:
        notes += [f"Played again, {part} is another after step {n}." for part, n in again.items()]
        tried = "Two episodes on the same frame with the same seed and actions."
        return Audit(subject, "not deterministic", (), tried, tuple(notes))
    found: dict[str, Finding] = {}
    chosen = _rows(reached, len(frame)) if rows is None else rows
    chosen = sorted({row for row in chosen if reached[0] <= row < len(frame)})
    for row in chosen:
        other = player.play(change(frame, row, len(frame)), base.actions, row)
        if other.broken and other.broken != base.broken:
            notes.append(f"With rows from {row} on changed, it {other.broken}.")
        for part, step in _differences(base.moments, other.moments, row).items():
            if part not in found:
                read = row
                if len(found) < LOCATED:
                    read = _row_read(player, frame, base, change, row, step, part)
                found[part] = _finding(part, step, read, base.moments, other.moments)
    if not chosen:
        notes.append("No row was tried: none lies ahead of what the agent knows.")
    tried = (
        f"Rows from {len(chosen)} places on changed; {len(base.actions)} steps, "
        f"{reached[0]} to {reached[-1]} of {len(frame)} rows known."
    )
    verdict: Verdict = "looks ahead" if found else "clean" if chosen else "failed"
    return Audit(subject, verdict, tuple(found.values()), tried, tuple(notes))


def _rows(reached: list[int], rows: int) -> list[int]:
    """First rows to change: what is unknown at first, and places on the way."""
    places = np.linspace(0, len(reached) - 1, ROWS_TRIED).astype(int)
    return sorted({reached[place] for place in places if reached[place] < rows})


class _Player(NamedTuple):
    """Plays episodes that differ in nothing but the frame."""

    make: Callable[[Any], Any]
    seen_rows: Callable[[Any], int]
    steps: int
    seed: int
    options: dict[str, Any] | None

    def play(self, frame: Any, actions: list[Any] | None, until: int | None = None) -> _Episode:
        """One episode; None draws actions; `until` ends it once that row may be known."""
        moments: list[_Moment] = []
        taken: list[Any] = []
        with _seeded(self.seed):
            try:
                env = self.make(deepcopy(frame))
                env.action_space.seed(self.seed)
                seen = env.reset(seed=self.seed, options=self.options)[0]
                moments.append(self._moment(env, seen, False))
                while len(taken) < (self.steps if actions is None else len(actions)):
                    if moments[-1].ended or (until is not None and moments[-1].rows > until):
                        break
                    action = env.action_space.sample() if actions is None else actions[len(taken)]
                    seen, _, terminated, truncated, _ = env.step(deepcopy(action))
                    taken.append(action)
                    moments.append(self._moment(env, seen, bool(terminated or truncated)))
            except Exception as error:
                where = f"at step {len(taken) + 1}" if moments else "before the first observation"
                return _Episode(moments, taken, f"raised {told(error)} {where}")
        return _Episode(moments, taken, "")

    def _moment(self, env: Any, seen: Any, ended: bool) -> _Moment:
        return _Moment(dict(_flat(seen, "")), int(self.seen_rows(env)), ended)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generators, which some environments draw from, begun anew and put back."""
    held, held_numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(held)
        np.random.set_state(held_numpy)


def _flat(seen: Any, name: str) -> Iterator[tuple[str, NDArray[Any]]]:
    """Arrays of an observation by name, copied: environments use their buffers again."""
    if isinstance(seen, Mapping):
        for key, value in seen.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    elif isinstance(seen, tuple):
        for place, value in enumerate(seen):
            yield from _flat(value, f"{name}[{place}]")
    else:
        yield name or "observation", np.array(seen)


def _differences(base: list[_Moment], other: list[_Moment], unknown: int | None) -> dict[str, int]:
    """Parts that differ while row `unknown` is none that the agent may know, and at which step.

    A part is an element of a vector, `observation[2]`, or a column of a larger array,
    `features[..., 2]`.
    """
    found: dict[str, int] = {}
    for step, (one, two) in enumerate(zip(base, other, strict=False)):
        if unknown is not None and one.rows > unknown:
            break
        for name in dict.fromkeys([*one.seen, *two.seen]):
            for part in _parts(name, one.seen.get(name), two.seen.get(name)):
                found.setdefault(part, step)
        if one.ended != two.ended or one.rows != two.rows:
            found.setdefault(END, step)
            break
    return found


def _parts(name: str, one: NDArray[Any] | None, other: NDArray[Any] | None) -> list[str]:
    """What of an array differs."""
    if one is None or other is None or one.shape != other.shape:
        return [name]
    differ = _differ(one, other)
    if not one.ndim or not differ.any():
        return [name] if differ.any() else []
    columns = np.flatnonzero(differ.reshape(-1, one.shape[-1]).any(axis=0))
    return [f"{name}[{'..., ' if one.ndim > 1 else ''}{column}]" for column in columns]


def _differ(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray((one != other) & ~((one != one) & (other != other)))


def _row_read(
    player: _Player,
    frame: Any,
    base: _Episode,
    change: Callable[[Any, int, int], Any],
    first: int,
    step: int,
    part: str,
) -> int:
    """The nearest row of the future that the part has read: fewer and fewer rows are changed."""
    low, high = first, len(frame)  # changing rows up to `high` shows, up to `low` does not
    while high - low > 1:
        middle = (low + high) // 2
        other = player.play(change(frame, first, middle), base.actions[:step])
        if part in _differences(base.moments[: step + 1], other.moments, None):
            high = middle
        else:
            low = middle
    return high - 1


def _finding(part: str, step: int, row: int, base: list[_Moment], other: list[_Moment]) -> Finding:
    known = base[step].rows
    after = f"after step {step}" if step else "after reset"
    what = f"{after} depends on row {row}, when {known} rows (0 to {known - 1}) are known"
    one, two = _value(base[step].seen, part), _value(other[step].seen, part)
    differ = _differ(one, two) if one.shape == two.shape else np.zeros(0, np.bool_)
    if differ.any():
        first, second = one[differ][0].item(), two[differ][0].item()
        what += f": {shown(first)} becomes {shown(second)}"
    return Finding(part, row, what, step)


def _value(seen: Parts, part: str) -> NDArray[Any]:
    """What is seen of a part, flat."""
    if part in seen:
        return np.atleast_1d(seen[part])
    name, _, place = part.removesuffix("]").rpartition("[")
    return seen[name][..., int(place.split()[-1])].reshape(-1) if name in seen else np.zeros(0)
