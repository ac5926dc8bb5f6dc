"""What a policy, or who chose it, has seen of a range already: training rows and the final period.

Start at `final_note` and `seen_days`.
"""

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.backtest.adhoc.policy import SavedPolicy
from trade_pipeline.backtest.adhoc.range import SpanMs
from trade_pipeline.backtest.instants import day
from trade_pipeline.backtest.promotion_record import policy_of, promotions
from trade_pipeline.market.calendars import DAY_MS
from trade_pipeline.settings.base import SettingsError
from trade_pipeline.settings.project import Project
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.location import StorageError
from trade_pipeline.training.dataset import Dataset, load_dataset
from trade_pipeline.training.splits import Rows

Days = NDArray[np.int64]
MOST_RUNS = 10  # of days, named in one sentence
TRAINED, PERHAPS, CHOSEN = "IN-SAMPLE", "PERHAPS IN-SAMPLE", "VALIDATION ROWS"


@dataclass(frozen=True)
class Seen:
    """Days of a range that had a part in making the policy.

    Attributes:
        days: of the range.
        training: first and last day of each run of days on which it was trained.
        validation: likewise of those that chose among its weights.
        label: what a title must open with, `TRAINED`, `PERHAPS` or `CHOSEN`; empty for a test.
        notes: what to tell the reader, most important first.
    """

    days: int
    label: str = ""
    training: tuple[tuple[str, str], ...] = ()
    validation: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """As the bundle holds it."""
        return {
            "days": self.days,
            "training": [list(run) for run in self.training],
            "validation": [list(run) for run in self.validation],
        }


def final_note(
    store: Path,
    project: Project,
    policy: SavedPolicy,
    span_ms: SpanMs,
    include_final: bool,
    origin: str,
) -> str | None:
    """What to say of a range that touches the final period of a policy's experiment.

    Args:
        store: the store's folder.
        project: of today; asked where the policy records no experiment.
        policy: which was trained.
        span_ms: the range, [start, end) in ms.
        include_final: whether the look was asked for in so many words.
        origin: who asks, as errors name it.

    Raises:
        SettingsError: it touches the period, the policy was never promoted, and nobody asked.
    """
    settings = policy.settings or project.experiments.get(policy.experiment or "")
    if settings is None or settings.final_from is None:
        return None
    if span_ms[1] <= _ms(settings.final_from) or span_ms[0] >= _ms(settings.end):
        return None
    period = f"the final period of {policy.experiment} ({settings.final_from} to {settings.end})"
    if _ever_promoted(store, policy):
        return f"The range touches {period}; the policy was promoted, so it was shown that before."
    if not include_final:
        raise SettingsError(
            f"{origin}: the range touches {period}, which is kept for what is promoted, and "
            f"{policy.name} was not. End it at {settings.final_from}, or set include_final: true "
            "to look all the same: the report will say so."
        )
    return (
        f"The range touches {period}, and the policy is not promoted: include_final asked for this "
        "look, after which the period is less of a test."
    )


def seen_days(store: Path, policy: SavedPolicy, dataset: Dataset, rows: Rows) -> Seen:
    """Which days of the rows [K, 2] of a dataset had a part in making a policy."""
    days = np.unique(np.concatenate([_days_of(dataset.ts[a:b]) for a, b in rows.tolist()]))
    found = _parts(store, policy)
    if found is None:
        return _perhaps(policy, days)
    training, validation = (np.isin(days, part) for part in found)
    validation &= ~training  # a day may hold the end of one and the start of the other
    notes = []
    if training.any():
        notes.append(
            f"{TRAINED}: {int(training.sum())} of the {len(days)} days of this range are days that "
            f"the policy was trained on ({_named(_runs(days, training))}). Training rows are no "
            f"test: what it earns there says nothing of other days."
        )
    if validation.any():
        notes.append(
            f"{CHOSEN}: {int(validation.sum())} of the {len(days)} days of this range are of its "
            f"validation part ({_named(_runs(days, validation))}), which chose among its weights "
            "and may have chosen it among others: they favour it."
        )
    label = notes[0].partition(":")[0] if notes else ""
    return Seen(len(days), label, _runs(days, training), _runs(days, validation), tuple(notes))


def _parts(store: Path, policy: SavedPolicy) -> tuple[Days, Days] | None:
    """UTC days of its training and validation rows; None where its dataset is not stored."""
    if policy.experiment is None:
        return None
    specification = policy.runner.specification
    try:
        home = layout.experiment_bundle(store, policy.experiment, "dataset")
        dataset = load_dataset(bundles.stored(home, specification["dataset_version"]))
    except StorageError:
        return None
    if not 0 <= specification["fold"] < len(dataset.folds):
        return None
    fold = dataset.folds[specification["fold"]]
    training, validation = (
        np.unique(np.concatenate([_days_of(dataset.ts[a:b]) for a, b in part.tolist()]))
        for part in (fold.train, fold.validation)
    )
    return training, validation


def _perhaps(policy: SavedPolicy, days: Days) -> Seen:
    """What can be said without its dataset: the dates of its experiment, if these are known."""
    settings = policy.settings
    if settings is None:
        return Seen(
            len(days),
            PERHAPS,
            notes=(
                f"{PERHAPS}: the policy does not record which rows it was trained on, so "
                "nothing shows that this range is a test.",
            ),
        )
    until = settings.final_from or settings.end
    inside = (days >= _ms(settings.start)) & (days < _ms(until))
    if not inside.any():
        return Seen(len(days))
    return Seen(
        len(days),
        PERHAPS,
        notes=(
            f"{PERHAPS}: {int(inside.sum())} of the {len(days)} days of this range lie in "
            f"what the policy's experiment used ({settings.start} to {until}); its dataset is not "
            "stored here, so which of them it was trained on is not known.",
        ),
    )


def _ever_promoted(store: Path, policy: SavedPolicy) -> bool:
    """Whether a promotion of its experiment ever pointed to this version."""
    try:
        home = layout.experiment_bundle(store, str(policy.experiment), "promoted")
    except StorageError:  # a name from elsewhere that can be no key
        return False
    return any(policy_of(one).version == policy.version for one in promotions(home))


def _days_of(ts: NDArray[np.int64]) -> Days:
    """Starts of the UTC days of some instants, in ms."""
    return np.asarray(ts) // DAY_MS * DAY_MS


def _runs(days: Days, chosen: NDArray[np.bool_]) -> tuple[tuple[str, str], ...]:
    """First and last of each run of chosen days, weekends and the like not counted as breaks."""
    edges = np.flatnonzero(np.diff(chosen.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    return tuple((day(int(days[a])), day(int(days[b - 1]))) for a, b in edges)


def _named(runs: tuple[tuple[str, str], ...]) -> str:
    texts = [first if first == last else f"{first} to {last}" for first, last in runs]
    more = f" and {len(texts) - MOST_RUNS} more" if len(texts) > MOST_RUNS else ""
    return ", ".join(texts[:MOST_RUNS]) + more


def _ms(day_: date) -> int:
    return (day_ - date(1970, 1, 1)).days * DAY_MS
