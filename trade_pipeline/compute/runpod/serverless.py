"""Worker of a RunPod serverless endpoint: indicator sweeps and what a policy would do.

Run as `python -m trade_pipeline.compute.runpod.serverless`. A job's input is `JobInput`; what it
gives is a table, inline as `{"columns": {name: values}}`, or where that is too large
`{"key", "sha256"}` of a parquet file on the network volume, below `$TRADE_PIPELINE_SERVERLESS_ROOT`
(`/runpod-volume/trade_pipeline` unless set). Keys that a job names lie in the `store` below that,
drop-in files of indicators in `indicators`. What is wrong with a job comes back as its error, in a
sentence. Knows no HTTP and no account; `endpoint` is the other side. Start at `answer`.
"""

import asyncio
import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Discriminator, Field, RootModel, Tag

from trade_pipeline.features.plugins.loading import load_plugins
from trade_pipeline.features.registry import FeatureSet, resolve
from trade_pipeline.features.table import TS, FeatureError, feature_table
from trade_pipeline.settings.base import Settings, SettingsError, parse_settings
from trade_pipeline.settings.features import FeatureSetSettings, IndicatorSettings
from trade_pipeline.settings.project import INDICATORS
from trade_pipeline.storage import bundles
from trade_pipeline.storage.documents import read_json
from trade_pipeline.storage.frames import read_frame, write_frame
from trade_pipeline.storage.location import ArtifactLocation, StorageError
from trade_pipeline.training.policy import PolicyError, PolicyRunner

ROOT_VARIABLE = "TRADE_PIPELINE_SERVERLESS_ROOT"
ROOT = "/runpod-volume/trade_pipeline"  # where a worker sees its network volume
RUN_BYTES, RUNSYNC_BYTES = 10_000_000, 20_000_000  # RunPod's limits on encoded jobs and results
LATEST_MS = 2**47  # either side of 1970: some 4,400 years
ERROR_CHARACTERS = 4_000
UPDATES = 100  # most of one job; the SDK sends each in a thread of its own

Report = Callable[[dict[str, Any]], None]
Number = Annotated[float, Field(strict=True)]
Numbers = tuple[Number, ...]
Row = Annotated[Numbers, Field(min_length=1)]


class InlineBars(Settings):
    """Contiguous bars, column by column; prices already adjusted."""

    ts: tuple[Annotated[int, Field(strict=True, ge=-LATEST_MS, le=LATEST_MS)], ...] = Field(
        description="Open time in ms since 1970, UTC."
    )
    open: Numbers
    high: Numbers
    low: Numbers
    close: Numbers
    volume: Numbers


class StoredBars(Settings):
    """A frame in the store on the volume, with the columns of `InlineBars`."""

    key: str


def _inline_or_stored(value: Any) -> str:
    return "stored" if isinstance(value, dict) and "key" in value else "inline"


class _Job(Settings):
    output_bytes: Annotated[int, Field(strict=True, ge=0, le=RUNSYNC_BYTES)] = Field(
        default=RUN_BYTES, description="A larger result, encoded, goes to the volume."
    )


class IndicatorsInput(_Job):
    """Indicators over bars of one segment, as a file of `configs/features` lists them."""

    kind: Literal["indicators"]
    bars: Annotated[
        Annotated[InlineBars, Tag("inline")] | Annotated[StoredBars, Tag("stored")],
        Discriminator(_inline_or_stored),
    ]
    indicators: tuple[IndicatorSettings, ...] = Field(min_length=1)


class PolicyReference(Settings):
    """A committed policy bundle in the store on the volume: key `aapl_ppo/policy/base.f0.s1`."""

    key: str
    version: str


class InferInput(_Job):
    """What a policy sees, step by step; one with a memory begins without any.

    Features are unscaled, as feature tables hold them, of all instruments side by side: the
    policy scales them itself.
    """

    kind: Literal["infer"]
    policy: PolicyReference
    windows: Annotated[tuple[tuple[Row, ...], ...], Field(min_length=1)] | None = Field(
        default=None, description="[n][window][columns], an observation each."
    )
    rows: Annotated[tuple[Row, ...], Field(min_length=1)] | None = Field(
        default=None, description="[n + window - 1][columns]: windows that follow each other."
    )
    accounts: Annotated[tuple[Row, ...], Field(min_length=1)] = Field(
        description="[n][5 instruments + 1], the account vector of each observation."
    )


class JobInput(RootModel[Annotated[IndicatorsInput | InferInput, Field(discriminator="kind")]]):
    """What a job of the endpoint may ask for."""


class JobError(ValueError):
    """A job cannot be done as asked; the message says why and what to do."""


def answer(content: Any, job_id: str, root: Path, report: Report) -> dict[str, Any]:
    """Do one job.

    Args:
        content: the job's input, unchecked.
        job_id: names the folder of a result that is too large to return.
        root: of what lies on the volume.
        report: called with `{"seq", "done", "of", "what"}` as the job goes on; `seq` counts from 1,
            since updates may overtake each other on their way.

    Returns:
        `{"columns"}` or `{"key", "sha256"}`, see above, or `{"error": sentence}`.
    """
    try:
        job = parse_settings(content, JobInput, "job input").root
        if isinstance(job, IndicatorsInput):
            table = _sweep(_bars(job.bars, root), job, root, report)
        else:
            table = _infer(job, root, report)
        return _returned(table, job_id, root, job.output_bytes)
    except (JobError, SettingsError, StorageError, FeatureError, PolicyError) as error:
        return {"error": str(error)[:ERROR_CHARACTERS]}  # a line for each wrong number, else


def table_of(columns: dict[str, list[Any]]) -> pl.DataFrame:
    """The table that `{"columns"}` was made from, to the last bit."""
    return pl.DataFrame(
        [
            pl.Series(name, values, pl.Int64).cast(TS)
            if name == "ts"
            else pl.Series(name, values, pl.Int64 if name.startswith("choice_") else pl.Float32)
            for name, values in columns.items()
        ]
    )


def _bars(given: InlineBars | StoredBars, root: Path) -> pl.DataFrame:
    if isinstance(given, StoredBars):
        frame = read_frame(_stored(root, given.key))
        missing = [name for name in InlineBars.model_fields if name not in frame.columns]
        if missing:
            raise JobError(
                f"bars {given.key}: there is no column {missing[0]!r}; store bars there."
            )
        return frame.select(list(InlineBars.model_fields))
    lengths = {name: len(getattr(given, name)) for name in InlineBars.model_fields}
    if len(set(lengths.values())) > 1:
        raise JobError(f"bars: columns hold {lengths} values; give each one value a bar.")
    times = pl.Series("ts", given.ts, pl.Int64).cast(TS)
    prices = {name: getattr(given, name) for name in lengths if name != "ts"}
    return pl.DataFrame({"ts": times, **prices}, schema_overrides=dict.fromkeys(prices, pl.Float64))


def _sweep(bars: pl.DataFrame, job: IndicatorsInput, root: Path, report: Report) -> pl.DataFrame:
    """The feature table of all indicators, made one by one."""
    plugins = load_plugins(root / INDICATORS)
    whole = resolve(FeatureSetSettings(indicators=job.indicators), "job input", plugins)
    count = len(whole.members)
    kept = max(bars.height - whole.lookback, 0)
    tables = [bars.select("ts").tail(kept)]
    for done, member in enumerate(whole.members, start=1):
        alone = FeatureSet((member,), whole.scaling)
        tables.append(feature_table([bars], alone).drop("ts").tail(kept))
        _report_some(report, done, count, member.indicator.name)
    return pl.concat(tables, how="horizontal")


def _infer(job: InferInput, root: Path, report: Report) -> pl.DataFrame:
    """The policy's action on each observation: `choice_<k>` Int64, or `weight_<k>` Float32."""
    runner = _runner(job.policy, root)
    seen = runner.specification["observation"]
    instruments, window = len(seen["instruments"]), int(seen["window"])
    columns = instruments * len(seen["feature_names"])
    windows = _windows(job, window, columns)
    shape = (len(windows), 5 * instruments + 1)
    accounts = _array("accounts", job.accounts, shape)
    actions = []
    for step, account in enumerate(accounts):
        unscaled = windows[step].reshape(window, instruments, -1)
        scaled = runner.normalizer.transform(unscaled)
        actions.append(runner.act({"window": scaled, "account": account}))
        _report_some(report, step + 1, len(windows), "observations")
    stacked = np.stack(actions)
    name = "choice" if stacked.dtype == np.int64 else "weight"
    return pl.DataFrame({f"{name}_{k}": stacked[:, k] for k in range(stacked.shape[1])})


def _report_some(report: Report, done: int, of: int, what: str) -> None:
    """Report most steps of a short job and few of a long one; the last is the result itself."""
    every = -(-of // UPDATES)
    if done % every == 0 and done < of:
        report({"seq": done // every, "done": done, "of": of, "what": what})


def _runner(reference: PolicyReference, root: Path) -> PolicyRunner:
    location = bundles.stored(_stored(root, reference.key), reference.version)
    runner = PolicyRunner.load(location)
    held = read_json(location.child(bundles.INDEX))["version"]
    if held != reference.version:
        raise JobError(
            f"policy {reference.key}: the folder of version {reference.version} holds version "
            f"{held}; put the bundle there again."
        )
    return runner


def _windows(job: InferInput, window: int, columns: int) -> NDArray[np.float32]:
    """Unscaled float32 [n, window, columns]."""
    if (job.windows is None) == (job.rows is None):
        raise JobError("job input: give either 'windows' or 'rows', and not both.")
    count = len(job.accounts)
    if job.windows is not None:
        return _array("windows", job.windows, (count, window, columns))
    rows = _array("rows", job.rows, (count + window - 1, columns))
    following = np.lib.stride_tricks.sliding_window_view(rows, window, axis=0)
    return np.ascontiguousarray(following.swapaxes(1, 2))


def _array(name: str, given: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Nested tuples as float32 of exactly this shape, finite."""
    try:
        wide = np.array(given, np.float64)
    except ValueError:  # ragged
        raise JobError(f"{name}: not all have the same length; shape {shape} is needed.") from None
    if wide.shape != shape:
        raise JobError(
            f"{name}: shape {wide.shape} was given; this policy, for as many observations as there "
            f"are accounts, needs {shape}."
        )
    with np.errstate(over="ignore"):
        made = wide.astype(np.float32)
    wrong = np.argwhere(~np.isfinite(made))
    if len(wrong):
        place = [int(part) for part in wrong[0]]
        raise JobError(f"{name}: {wide[tuple(place)]} at {place} is beyond a float32; correct it.")
    return made


def _stored(root: Path, key: str) -> ArtifactLocation:
    return ArtifactLocation(root / "store", key)


def _returned(table: pl.DataFrame, job_id: str, root: Path, most_bytes: int) -> dict[str, Any]:
    """The table itself, or where it was put since it is too large."""
    columns = {
        series.name: (series.to_physical() if series.name == "ts" else series).to_list()
        for series in table
    }
    inline = {"columns": columns}
    size = len(json.dumps(inline).encode())
    if size <= most_bytes:
        return inline
    if not root.is_dir():
        raise JobError(
            f"the result has {size} bytes, more than {most_bytes}, and there is no volume to put "
            f"it on at {root}; attach a network volume to the endpoint and make the folder, or ask "
            "for less in one job."
        )
    location = ArtifactLocation(root, f"jobs/serverless/{job_id}/table.parquet")
    write_frame(location, table)
    with location.path.open("rb") as file:
        return {"key": location.key, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


class Stopped(Exception):  # noqa: N818 - what happened to the job
    """RunPod wants the job no more."""


class Worker:
    """Hands RunPod's jobs to `answer`, in a thread each: the SDK's loop must hear of a stop.

    Args:
        root: of what lies on the volume.
        update: sends progress of a job; the SDK's `progress_update`.
    """

    def __init__(self, root: Path, update: Callable[[dict[str, Any], Any], None]) -> None:
        self._root = root
        self._update = update

    async def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """The SDK's handler."""
        stopped = threading.Event()

        def report(progress: dict[str, Any]) -> None:
            if stopped.is_set():
                raise Stopped
            self._update(job, progress)

        try:
            return await asyncio.to_thread(answer, job["input"], job["id"], self._root, report)
        except asyncio.CancelledError:
            stopped.set()
            raise


def main() -> None:
    """Take jobs until RunPod ends this process."""
    import runpod  # takes a second, which the other side of the endpoint need not spend

    root = Path(os.environ.get(ROOT_VARIABLE, ROOT))
    runpod.serverless.start({"handler": Worker(root, runpod.serverless.progress_update)})


if __name__ == "__main__":
    main()
