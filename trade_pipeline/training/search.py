"""A search for settings with Optuna: suggestions in, scores out, all kept in SQLite.

The same setup suggests the same settings in the same order, also when a killed search goes on: what
was running then is marked as failed and suggested again. A score is whatever `evaluate` says; this
module trains nothing. Start at `search`. Needs the extra `search`.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import optuna
from matplotlib.figure import Figure
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from trade_pipeline.settings.code_version import canonical_json
from trade_pipeline.settings.search import (
    Choice,
    Dimension,
    IntRange,
    LogFloatRange,
    SearchSettings,
)
from trade_pipeline.storage.documents import json_hash
from trade_pipeline.storage.frames import frame_lock
from trade_pipeline.storage.location import ArtifactLocation

MOST_FAILURES = 5  # in a row: then it is not the settings that are wrong
_ERROR = "error"  # attribute of a trial that failed; one that was interrupted has none


class SearchError(Exception):
    """A search cannot go on; the message says why."""


class NoScoreError(Exception):
    """Settings that gave no score; the search goes on with others. The message says why."""


class Searched(NamedTuple):
    """What a search found."""

    best: dict[str, Any]  # dotted path to value
    score: float
    scored: int
    failed: int
    picture: bytes  # PNG of the scores in order


def search(
    settings: SearchSettings,
    setup: Mapping[str, Any],
    study: ArtifactLocation,
    evaluate: Callable[[dict[str, Any]], float],
    log: Callable[[str], None],
) -> Searched:
    """Try settings until `settings.trials` are done; those done before count.

    Args:
        settings: the space, how to search it, and how long.
        setup: JSON-able, all else that a score depends on; another setup begins a new study.
        study: the SQLite file. One search at a time uses it, another waits.
        evaluate: dotted path to value in, score out, higher is better.
        log: takes a sentence a trial.

    Raises:
        SearchError: no settings gave a score, or many in a row gave none.
        StorageError: the store cannot be written.
    """
    with frame_lock(study), _opened(study, settings, setup) as opened:
        for interrupted in opened.get_trials(states=(TrialState.RUNNING,)):
            opened.tell(interrupted.number, state=TrialState.FAIL)
            log(f"suggestion {interrupted.number} was interrupted; it is made again")
        failures = 0
        while len(done := _done(opened)) < settings.trials:
            failed = _try_one(opened, settings, done, evaluate, log)
            failures = failures + 1 if failed else 0
            if failures == MOST_FAILURES:
                raise SearchError(
                    f"{study}: the last {MOST_FAILURES} suggestions gave no score, the last "
                    f"because: {failed} Correct this or the space, and start the search again."
                )
        return _result(study, _done(opened))


@contextmanager
def _opened(
    location: ArtifactLocation, settings: SearchSettings, setup: Mapping[str, Any]
) -> Iterator[optuna.Study]:
    """The study of this setup in the SQLite file; others there are left alone."""
    made_of = settings.model_dump(mode="json", exclude={"trials"})  # more trials: it goes on
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = RDBStorage(f"sqlite:///{location.path}")
    try:
        yield optuna.create_study(
            study_name=json_hash([made_of, setup])[:32],
            storage=storage,
            direction="maximize",
            load_if_exists=True,
        )
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _try_one(
    study: optuna.Study,
    settings: SearchSettings,
    done: list[FrozenTrial],
    evaluate: Callable[[dict[str, Any]], float],
    log: Callable[[str], None],
) -> str | None:
    """Suggest, evaluate and keep the score; why there was none, or None."""
    # Seeded by what is done, not by what was begun: an interrupted suggestion is made again.
    study.sampler = _sampler(settings, settings.seed + len(done))
    trial = study.ask()
    chosen = {
        path: _suggest(trial, path, dimension) for path, dimension in sorted(settings.space.items())
    }
    said = f"suggestion {len(done) + 1} of {settings.trials}, {canonical_json(chosen)}"
    same = next((one for one in done if one.value is not None and one.params == trial.params), None)
    try:
        score = evaluate(chosen) if same is None or same.value is None else same.value
    except NoScoreError as error:
        trial.set_user_attr(_ERROR, str(error))
        study.tell(trial, state=TrialState.FAIL)
        log(f"{said}: no score. {error}")
        return str(error)
    study.tell(trial, score)
    log(f"{said}: {score:.6g}" + ("" if same is None else " as before"))
    return None


def _sampler(settings: SearchSettings, seed: int) -> BaseSampler:
    return TPESampler(seed=seed) if settings.sampler == "tpe" else RandomSampler(seed=seed)


def _suggest(trial: optuna.Trial, path: str, dimension: Dimension) -> Any:
    if isinstance(dimension, Choice):
        # As JSON: Optuna keeps no lists and no mappings.
        names = [canonical_json(value) for value in dimension.values]
        return json.loads(trial.suggest_categorical(path, names))
    if isinstance(dimension, IntRange):
        return trial.suggest_int(path, dimension.low, dimension.high)
    log = isinstance(dimension, LogFloatRange)
    return trial.suggest_float(path, dimension.low, dimension.high, log=log)


def _done(study: optuna.Study) -> list[FrozenTrial]:
    """What needs no second try, in order."""
    return [
        one
        for one in study.get_trials(deepcopy=False)
        if one.state == TrialState.COMPLETE or _ERROR in one.user_attrs
    ]


def _result(study: ArtifactLocation, done: list[FrozenTrial]) -> Searched:
    scores = [one.value for one in done]
    scored = [one for one in done if one.value is not None]
    if not scored:
        raise SearchError(
            f"{study}: none of {len(done)} suggestions gave a score, the last because: "
            f"{done[-1].user_attrs[_ERROR]} Correct this or the space, and raise search.trials."
        )
    best = max(scored, key=lambda one: (one.value or 0.0, -one.number))
    assert best.value is not None
    values = {
        path: json.loads(value)
        if isinstance(best.distributions[path], optuna.distributions.CategoricalDistribution)
        else value
        for path, value in best.params.items()
    }
    return Searched(values, best.value, len(scored), len(done) - len(scored), _picture(scores))


def _picture(scores: list[float | None]) -> bytes:
    """The scores in order, and the best so far."""
    figure = Figure(figsize=(9, 3.5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    numbers = [number for number, score in enumerate(scores, 1) if score is not None]
    values = [score for score in scores if score is not None]
    best = [max(values[: count + 1]) for count in range(len(values))]
    axes.plot(numbers, values, "o", markersize=4, color="#4878a8", label="score")
    axes.step(numbers, best, where="post", color="#c44e52", label="best so far")
    for number, score in enumerate(scores, 1):
        if score is None:
            axes.axvline(number, color="#bbbbbb", linewidth=1, linestyle=":")
    axes.set_xlabel("suggestion (dotted: no score)")
    axes.set_ylabel("mean validation return")
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()
