"""The retrain sensor: trains again when the rows that an experiment selects have changed.

New bars alone start nothing. Per experiment with `retrain` other than manual, the cursor keeps
the hash of the rows last acted on; the dataset is rebuilt first, then the regimes of every fold
where it has some, then every trial, then the report, each step once the one before has succeeded.
Start at `next_step`, which is pure.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

import dagster as dg
import polars as pl
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition,
)
from dagster._core.storage.tags import PARTITION_NAME_TAG

from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.settings.project import Project
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.documents import json_hash
from trade_pipeline.storage.frames import content_hash, read_frame

INTERVAL_S = 300
REQUEST_TAG = "trade_pipeline/retrain"

Step = Literal["idle", "dataset", "regimes", "trials", "report", "failed"]
Outcome = Literal["absent", "running", "succeeded", "failed"]


class State(NamedTuple):
    """What the cursor keeps of an experiment: rows acted on, the month of it, the step reached.

    `turn` counts the times it was started: rows may return to what they were, and Dagster starts
    nothing for a run key that it has seen.
    """

    rows: str
    month: str
    step: Step
    turn: int


class Facts(NamedTuple):
    """What a tick sees of an experiment."""

    rows: str | None  # hash of the selected rows; None while features are missing
    month: str  # of the tick, such as 2026-11
    has_dataset: bool
    outcome: Callable[[str], Outcome]  # of the runs of a step


class Request(NamedTuple):
    """A run to start: the step and, for trials and regimes, the partition."""

    step: str
    partition: str | None


def next_step(
    state: State | None, facts: Facts, experiment: ExperimentSettings
) -> tuple[State | None, list[Request], str]:
    """Decide what one tick does for one experiment.

    Returns:
        The state to keep, the runs to request, and a sentence for the log.
    """
    if facts.rows is None:
        return state, [], "its features are not materialized yet"
    if state is None:
        if facts.has_dataset:  # trained by hand before: take that as the point of departure
            return (
                State(facts.rows, facts.month, "idle", 0),
                [],
                "its present rows are taken as known",
            )
        return _start(facts, 1)
    if state.step in ("idle", "failed"):
        if facts.rows == state.rows:
            return state, [], "its rows are unchanged"
        if experiment.retrain == "monthly" and facts.month == state.month:
            return state, [], f"its rows changed, but it trained in {state.month} already"
        return _start(facts, state.turn + 1)
    outcome = facts.outcome(state.step)
    if outcome in ("running", "absent"):
        return state, [], f"its {state.step} is running"
    if outcome == "failed":
        return state._replace(step="failed"), [], f"its {state.step} failed; waits for new rows"
    if state.step == "report":
        return state._replace(step="idle"), [], "it is trained on its present rows"
    if state.step == "dataset" and experiment.regimes is not None:
        requests = [Request("regimes", key) for key in experiment.fold_keys]
        return state._replace(step="regimes"), requests, "its dataset is built; regimes start"
    if state.step in ("dataset", "regimes"):
        requests = [Request("trials", key) for key in experiment.trials()]
        return state._replace(step="trials"), requests, f"its {state.step} is built; trials start"
    return state._replace(step="report"), [Request("report", None)], "its trials are done"


def _start(facts: Facts, turn: int) -> tuple[State, list[Request], str]:
    assert facts.rows is not None
    state = State(facts.rows, facts.month, "dataset", turn)
    return state, [Request("dataset", None)], "its rows changed; its dataset is rebuilt"


def selected_rows_hash(store: Path, experiment: ExperimentSettings) -> str | None:
    """Hash of the feature rows in [from, to) of every series; None if a table is missing."""
    hashes = {}
    for key in experiment.series:
        location = layout.features(store, experiment.features, key)
        if not location.path.exists():
            return None
        day = pl.col("ts").dt.date()
        rows = read_frame(location).filter(day >= experiment.start, day < experiment.end)
        hashes[key] = content_hash(rows)
    return json_hash(hashes)


def build_jobs(
    name: str, assets: Mapping[str, dg.AssetsDefinition], leaderboard: dg.AssetsDefinition
) -> dict[str, UnresolvedAssetJobDefinition]:
    """Jobs of an experiment by step: dataset; regimes of a fold; a trial; report."""
    regimes = [assets[name] for name in ("regime_model", "regimes") if name in assets]
    selections = {
        "dataset": [assets["dataset"]],
        **({"regimes": regimes} if regimes else {}),
        "trials": [assets["policy"], assets["backtest"]],
        "report": [assets["report"], leaderboard],
    }
    return {
        step: dg.define_asset_job(f"{name}_{step}", dg.AssetSelection.assets(*selected))
        for step, selected in selections.items()
    }


def build_retrain_sensor(
    project: Project,
    store: Path,
    jobs: Mapping[str, Mapping[str, UnresolvedAssetJobDefinition]],
) -> dg.SensorDefinition:
    """One sensor over all experiments; its cursor is a JSON object by experiment name."""

    @dg.sensor(
        name="retrain",
        jobs=[job for steps in jobs.values() for job in steps.values()],
        minimum_interval_seconds=INTERVAL_S,
        description="Trains again when selected rows changed, for experiments that ask for it.",
    )
    def retrain(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        states = {
            name: State(*values) for name, values in json.loads(context.cursor or "{}").items()
        }
        requests: list[dg.RunRequest] = []
        notes = []
        for name, experiment in project.experiments.items():
            if experiment.retrain == "manual":
                continue
            if project.compute[experiment.compute].remote and not experiment.auto_remote:
                notes.append(f"{name}: remote compute needs auto_remote: true")
                continue
            known = states.get(name)
            facts = _facts(context, store, name, experiment, known)
            state, wanted, note = next_step(known, facts, experiment)
            notes.append(f"{name}: {note}")
            if state is not None:
                states[name] = state
                requests.extend(_run_request(name, state, one) for one in wanted)
        cursor = json.dumps({name: list(state) for name, state in states.items()})
        reason = "; ".join(notes) or "every experiment is retrained by hand (retrain: manual)"
        if requests:
            context.log.info(reason)
            return dg.SensorResult(run_requests=requests, cursor=cursor)
        return dg.SensorResult(skip_reason=reason, cursor=cursor)

    return retrain


def _facts(
    context: dg.SensorEvaluationContext,
    store: Path,
    name: str,
    experiment: ExperimentSettings,
    state: State | None,
) -> Facts:
    def outcome(step: str) -> Outcome:
        assert state is not None
        runs = context.instance.get_runs(
            dg.RunsFilter(tags={REQUEST_TAG: _request_name(name, state, step)})
        )
        several = {"trials": len(experiment.trials()), "regimes": experiment.folds}
        wanted = several.get(step, 1)
        latest: dict[str | None, dg.DagsterRunStatus] = {}
        for run in runs:  # newest first: a trial that was repeated counts by its last run
            latest.setdefault(run.tags.get(PARTITION_NAME_TAG), run.status)
        return _joint_outcome(list(latest.values()), wanted)

    home = layout.experiment_bundle(store, name, "dataset")
    return Facts(
        rows=selected_rows_hash(store, experiment),
        month=f"{datetime.now(UTC):%Y-%m}",
        has_dataset=bundles.current_version(home) is not None,
        outcome=outcome,
    )


def _joint_outcome(statuses: Sequence[dg.DagsterRunStatus], wanted: int) -> Outcome:
    if not statuses:
        return "absent"
    if statuses.count(dg.DagsterRunStatus.SUCCESS) >= wanted:
        return "succeeded"
    ended = (
        dg.DagsterRunStatus.SUCCESS,
        dg.DagsterRunStatus.FAILURE,
        dg.DagsterRunStatus.CANCELED,
    )
    unended = any(status not in ended for status in statuses)
    return "running" if unended or len(statuses) < wanted else "failed"


def _run_request(name: str, state: State, request: Request) -> dg.RunRequest:
    request_name = _request_name(name, state, request.step)
    return dg.RunRequest(
        run_key=f"{request_name}:{request.partition or 'all'}",
        job_name=f"{name}_{request.step}",
        partition_key=request.partition,
        tags={REQUEST_TAG: request_name},
    )


def _request_name(name: str, state: State, step: str) -> str:
    return f"{name}:{state.rows[:16]}:{state.turn}:{step}"
