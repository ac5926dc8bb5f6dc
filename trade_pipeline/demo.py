"""`make demo`: the main job on the default series, step by step, as a user would type it.

Every step is a `dagster asset materialize` of its own. At the end it prints the leaderboard, where
the reports are, and one line of JSON. Start at `main`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import dagster as dg
from dagster._core.definitions.data_version import extract_data_version_from_entry

from trade_pipeline.backtest.leaderboard import markdown
from trade_pipeline.defs.partitions import Partitions
from trade_pipeline.settings.project import Places, Project, read_project
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.frames import read_frame

EXPERIMENTS = ("aapl_ppo", "tech_portfolio_ppo")
MODULE = "trade_pipeline.definitions"


def main() -> int:
    """Run every step; returns the exit code of the first that fails."""
    places = Places.from_environment(os.environ)
    steps = list(demo_steps(read_project(places.configs)))
    started = time.monotonic()
    for number, options in enumerate(steps, start=1):
        elapsed = time.monotonic() - started
        shown = " ".join(f"'{one}'" if "|" in one else one for one in options)
        print(f"[{number}/{len(steps)}, {elapsed:.0f} s]", end=" ")
        print(f"dagster asset materialize {shown}", flush=True)
        code = _materialize(options)
        if code != 0:
            return code
    table = read_frame(layout.leaderboard(places.store))
    reports = []
    for name in EXPERIMENTS:
        home = bundles.current(layout.experiment_bundle(places.store, name, "report"))
        reports.append(str(home.child("report.html").path))
    print(f"\nOut of sample, after costs; finished in {time.monotonic() - started:.0f} s.\n")
    print(markdown(table))
    print("\nReports:\n" + "\n".join(f"  {page}" for page in reports) + "\n")
    result = {
        "reports": reports,
        "leaderboard": str(layout.leaderboard(places.store).path),
        "data_versions": data_versions(dg.DagsterInstance.get()),
    }
    print(json.dumps(result))
    return 0


def demo_steps(project: Project) -> Iterator[list[str]]:
    """Options of each `dagster asset materialize`, in order."""
    # What needs no network: the sample series, which stand first.
    series = [key for key, one in project.series.items() if one.source.kind == "bokeh_sample"]
    years = Partitions.of(project).year.get_partition_keys()
    experiments = {name: project.experiments[name] for name in EXPERIMENTS}
    yield _options(["ohlcv"], f"{series[0]}|{years[0]}", f"{series[-1]}|{years[-1]}")
    sets = sorted({f"features/{one.features}" for one in experiments.values()})
    yield _options(["manifest", *sets], series[0], series[-1])
    yield _options([f"{name}/dataset" for name in experiments])
    for name, experiment in experiments.items():
        for trial in experiment.trials():
            yield _options([f"{name}/policy", f"{name}/backtest"], trial)
    yield _options([*(f"{name}/report" for name in experiments), "leaderboard"])


def data_versions(instance: dg.DagsterInstance) -> dict[str, str]:
    """Latest data version of every materialized partition, by `asset|partition` or `asset`."""
    versions = {}
    for name, key in sorted(("/".join(key.path), key) for key in instance.all_asset_keys()):
        partitions: list[str | None] = [*sorted(instance.get_materialized_partitions(key))]
        for partition in partitions or [None]:
            record = instance.get_latest_data_version_record(key, partition_key=partition)
            version = record and extract_data_version_from_entry(record.event_log_entry)
            if version is not None:
                versions[name if partition is None else f"{name}|{partition}"] = version.value
    return versions


def _options(assets: list[str], first: str | None = None, last: str | None = None) -> list[str]:
    options = ["-m", MODULE, "--select", ",".join(assets)]
    if first is not None and last is not None:
        return [*options, "--partition-range", f"{first}...{last}"]
    return options if first is None else [*options, "--partition", first]


def _materialize(options: list[str]) -> int:
    """Run one step; its log is shown only when it fails."""
    command = [sys.executable, "-m", "dagster", "asset", "materialize", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        print(done.stdout)
        print(f"This step failed with code {done.returncode}; its log stands above.")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
