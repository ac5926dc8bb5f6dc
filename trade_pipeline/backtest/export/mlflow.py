"""A trial's backtest and training as a run of MLflow, written once for each version.

What is written is made from the two bundles alone (`run_content`); MLflow is imported by
`log_backtest` only, and told to report nothing to its makers. Text that is shown to people holds no
part of a tracking URI that may be secret. Start at `log_backtest`.
"""

import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from trade_pipeline.backtest.export.sources import BacktestSources, configuration, key_of
from trade_pipeline.storage.documents import read_json
from trade_pipeline.storage.frames import read_frame
from trade_pipeline.storage.location import StorageError

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY_TAG, VERSION_TAG = "trade_pipeline.key", "trade_pipeline.version"
FINISHED, FAILED = "FINISHED", "FAILED"
MOST_PARAMS, MOST_METRICS = 100, 1000  # that MLflow takes in a request
_KEY_LENGTH = 250  # of MLflow, in characters
_FOREIGN = re.compile(r"[^\w\-./: ]")  # what names in MLflow cannot hold


T = TypeVar("T")


class MlflowError(StorageError):
    """A run cannot be written; the message says why, without secrets of the tracking URI."""


class Value(NamedTuple):
    """A number at a step; figures of a backtest have step 0."""

    name: str
    value: float
    step: int


@dataclass(frozen=True)
class RunContent:
    """What a run holds.

    Attributes:
        name: of the run.
        params: flattened configuration.
        metrics: `train/<name>` over frames, `trained/<name>` and `test/<name>` at step 0.
        tags: versions and hashes, and why figures are undefined.
        folders: artefact folder to the bundle's folder.
    """

    name: str
    params: dict[str, str]
    metrics: list[Value]
    tags: dict[str, str]
    folders: dict[str, Path]


@dataclass(frozen=True)
class LoggedRun:
    """A run in MLflow; `new` is false where the version was there already."""

    run_id: str
    experiment: str
    new: bool


def log_backtest(
    sources: BacktestSources, uri: str, experiment: str | None, now_ms: int
) -> LoggedRun:
    """Write a trial's backtest as a finished run; one that is there already stays as it is.

    A run of this version that never finished, because the export was killed, is removed first.

    Args:
        sources: the backtest and its policy, verified.
        uri: MLflow's tracking URI: a server, `sqlite:///...`, or a folder as `file:///...`.
        experiment: MLflow's experiment, made where there is none; None is the trial's own.
        now_ms: time of the run and its metrics, ms UTC.

    Raises:
        MlflowError: MLflow is not installed, cannot be reached or refuses something.
    """
    content = run_content(sources)
    name = experiment or str(sources.known["experiment"])
    _require_mlflow()
    with _told_without_secrets(uri):
        client = _client(uri)
        found = client.get_experiment_by_name(name)
        home = (
            client.create_experiment(name, artifact_location=_artefacts(uri, name))
            if found is None
            else found.experiment_id
        )
        same = " and ".join(
            f"tags.`{tag}` = '{content.tags[tag]}'" for tag in (KEY_TAG, VERSION_TAG)
        )
        for run in client.search_runs([home], filter_string=same):
            if run.info.status == FINISHED:
                return LoggedRun(run.info.run_id, name, new=False)
            client.delete_run(run.info.run_id)
        run_id = client.create_run(
            home, start_time=now_ms, tags=content.tags, run_name=content.name
        ).info.run_id
        status = FAILED
        try:
            _write(client, run_id, content, now_ms)
            status = FINISHED
        finally:
            client.set_terminated(run_id, status=status)
    return LoggedRun(run_id, name, new=True)


def run_content(sources: BacktestSources) -> RunContent:
    """What a run of a backtest holds, from its bundle and the policy's."""
    known, specification, training = sources.known, sources.specification, sources.training
    figures = read_json(sources.backtest.child("metrics.json"))
    reasons = {f"undefined.test/{name}": why for name, why in _undefined(figures)}
    versions = {
        KEY_TAG: key_of(sources.backtest),
        VERSION_TAG: sources.backtest.path.name,
        "trade_pipeline.policy.key": key_of(sources.policy),
        "trade_pipeline.policy.version": sources.policy.path.name,
        "trade_pipeline.dataset.version": known["dataset_version"],
        "trade_pipeline.commit": training.get("commit") or "unknown",
        **_named("trade_pipeline.backtest.implementation", known["implementations"]),
        **_named("trade_pipeline.policy.implementation", specification["implementations"]),
        **_named("trade_pipeline.package", specification["versions"]),
        **_named("trade_pipeline.input", training.get("inputs", {})),
    }
    if figures.get("warnings"):
        versions["warnings"] = " ".join(figures["warnings"])
    return RunContent(
        name=f"{known['experiment']} {known['trial']}",
        params={_name(key): str(value) for key, value in configuration(sources).items()},
        metrics=[
            *_over_steps(sources),
            *(
                Value(_name(f"trained/{key}"), value, 0)
                for key, value in _plain(training["metrics"])
            ),
            *(Value(_name(f"test/{key}"), value, 0) for key, value in _defined(figures)),
        ],
        tags={_name(key): str(value) for key, value in (versions | reasons).items()},
        folders={"backtest": sources.backtest.path, "policy": sources.policy.path},
    )


def without_secrets(uri: str) -> str:
    """A tracking URI as it may be shown: without user, password and query.

    >>> without_secrets("https://me:secret@mlflow.example.org/base?token=x")
    'https://mlflow.example.org/base'
    """
    return re.sub(r"^([\w+.-]+://)(?=[^/]).*@", r"\1", re.split("[?#]", uri)[0])


def _over_steps(sources: BacktestSources) -> Iterator[Value]:
    """Training diagnostics; what was not taken, or is no number, is left out."""
    for row in read_frame(sources.policy.child("diagnostics.parquet")).to_dicts():
        step = row.pop("frames")
        for name, value in _plain(row):
            yield Value(_name(f"train/{name}"), value, step)


def _plain(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, int | float) and math.isfinite(value):
            yield name, float(value)


def _defined(figures: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Figures that have a value; those of a part inside, such as `market`, after its name."""
    yield from _plain(figures.get("values", {}))
    for part, inside in _parts(figures):
        yield from ((f"{part}/{name}", value) for name, value in _defined(inside))


def _undefined(figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from figures.get("undefined", {}).items()
    for part, inside in _parts(figures):
        yield from ((f"{part}/{name}", why) for name, why in _undefined(inside))


def _parts(figures: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, inside in figures.items():
        if name not in ("values", "undefined") and isinstance(inside, dict):
            yield name, inside


def _named(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in values.items()}


def _name(name: str) -> str:
    return _FOREIGN.sub("/", name)[:_KEY_LENGTH]


def _write(client: "MlflowClient", run_id: str, content: RunContent, now_ms: int) -> None:
    from mlflow.entities import Metric, Param

    params = [Param(name, value) for name, value in content.params.items()]
    for batch in _batches(params, MOST_PARAMS):
        client.log_batch(run_id, params=batch)
    metrics = [Metric(one.name, one.value, now_ms, one.step) for one in content.metrics]
    for part in _batches(metrics, MOST_METRICS):
        client.log_batch(run_id, metrics=part)
    for folder, path in content.folders.items():
        client.log_artifacts(run_id, str(path), folder)


def _batches(values: Sequence[T], most: int) -> Iterator[list[T]]:
    left = iter(values)
    while some := list(islice(left, most)):
        yield some


def _require_mlflow() -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        import mlflow  # noqa: F401
    except ImportError as error:
        raise MlflowError(
            "export to MLflow needs the package mlflow-skinny; install it with "
            "pip install 'trade_pipeline[mlflow]'."
        ) from error


def _client(uri: str) -> "MlflowClient":
    from mlflow import MlflowClient

    if urlsplit(uri).scheme in ("", "file"):
        # MLflow no longer develops its folders of files, and refuses them unless told to.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    # Of MLflow's seven, each twice as long as the one before, a wrong address takes minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    return MlflowClient(tracking_uri=uri)


def _artefacts(uri: str, experiment: str) -> str | None:
    """Where a new experiment keeps files: beside an sqlite file; else MLflow's own choice."""
    scheme, _, path = uri.partition(":///")
    if scheme != "sqlite":
        return None
    return str(Path(path).resolve().parent / "mlartifacts" / quote(experiment, safe=""))


@contextmanager
def _told_without_secrets(uri: str) -> Iterator[None]:
    """Make one sentence of whatever MLflow raises, and keep its log quiet meanwhile."""
    parts = urlsplit(uri)
    # A user alone may be a token; beside a password it is a name.
    named = [parts.password or parts.username, *(value for _, value in parse_qsl(parts.query))]
    secrets = {one for text in named if text for one in (text, unquote(text))}
    log = logging.getLogger("mlflow")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    except Exception as error:  # requests', SQLAlchemy's and MLflow's own
        said = str(error).replace(uri, without_secrets(uri))
        for secret in sorted(secrets, key=len, reverse=True):
            said = said.replace(secret, "***")
        raise MlflowError(
            f"MLflow at {without_secrets(uri)} did not take the run: {type(error).__name__}: {said}"
        ) from None
    finally:
        log.setLevel(level)
