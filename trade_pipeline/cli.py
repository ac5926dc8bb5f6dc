"""`trade-pipeline`: the few commands that are no asset."""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from trade_pipeline.backtest.promotion_record import pinned
from trade_pipeline.indicators_cli import indicators
from trade_pipeline.pods_cli import pods
from trade_pipeline.settings.project import Places
from trade_pipeline.storage import archives, bundles
from trade_pipeline.storage.location import ArtifactLocation, StorageError
from trade_pipeline.strategies_cli import strategies

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Commands of trade_pipeline that are no asset."
)
bundle = typer.Typer(no_args_is_help=True, help="Bundles of the store.")
app.add_typer(bundle, name="bundle")
app.add_typer(indicators, name="indicators")
app.add_typer(pods, name="pods")
app.add_typer(strategies, name="strategies")

StoreOption = Annotated[
    Path | None,
    typer.Option(help="The store; default: TRADE_PIPELINE_STORE, else the folder store."),
]
KEY_EXAMPLE = "such as aapl_ppo/policy/base.f0.s0"
KeyArgument = Annotated[str, typer.Argument(help=f"Key in the store, {KEY_EXAMPLE}.")]
ForceOption = Annotated[bool, typer.Option(help="Replace a file that is there.")]
VersionOption = Annotated[str | None, typer.Option(help="32 hex digits; default: the current.")]


class Format(Enum):
    """What a bundle is exported as."""

    ZIP = "zip"
    ONNX = "onnx"
    SB3 = "sb3"


@bundle.command()
def verify(
    bundle: Annotated[
        str, typer.Argument(help=f"Key in the store, {KEY_EXAMPLE}, or a bundle's folder or zip.")
    ],
    version: VersionOption = None,
    store: StoreOption = None,
) -> None:
    """Hash every member of a bundle and compare with its index; of a policy, check all else too.

    A policy's specification must parse, its weights fit it and be finite.
    """
    from trade_pipeline.training import importing

    try:
        if _is_key(bundle, store):
            index = importing.verify_stored(bundles.find(_folder(store), bundle, version))
        else:
            with tempfile.TemporaryDirectory() as workplace:
                index = importing.verify_stranger(Path(bundle), Path(workplace))
            if version not in (None, index["version"]):
                raise StorageError(f"{bundle}: holds version {index['version']}, not {version}.")
    except (StorageError, ValueError) as error:
        _stop(error)
    print(f"{bundle}: version {index['version']}, {len(index['members'])} members, all as recorded")


@bundle.command()
def export(
    key: KeyArgument,
    to: Annotated[Path, typer.Option(help="File to write.")],
    kind: Annotated[
        Format, typer.Option("--format", help="zip: all of it; onnx, sb3: a policy's network.")
    ] = Format.ZIP,
    version: VersionOption = None,
    force: ForceOption = False,
    all_trials: Annotated[
        bool,
        typer.Option("--all-trials", help="Of a report: every policy, not only median seeds'."),
    ] = False,
    store: StoreOption = None,
) -> None:
    """Write a bundle as one file: to move it, or to use a policy elsewhere.

    Of an experiment's report everything is written that it was made from: settings, policies,
    tables, logs, hashes; README.txt in the zip says what is where.
    """
    from trade_pipeline.backtest.export.report import pack_report
    from trade_pipeline.backtest.export.sources import is_report

    try:
        location = bundles.find(_folder(store), key, version)
        if all_trials and not (kind is Format.ZIP and is_report(location)):
            raise StorageError(f"{key}: --all-trials is for reports as zip; leave it out.")
        with archives.new_file(to, force) as target:
            if kind is Format.ZIP and is_report(location):
                pack_report(location, target, all_trials)
            elif kind is Format.ZIP:
                archives.pack(location, target)
            elif kind is Format.ONNX:
                from trade_pipeline.training.onnx_export import write_onnx

                write_onnx(location, location.path.name, target)
            else:
                from trade_pipeline.training.sb3_export import write_sb3

                write_sb3(location, target)
    except (StorageError, ValueError) as error:
        _stop(error)
    print(f"{to}: {key} version {location.path.name} as {kind.value}")


@bundle.command("mlflow")
def to_mlflow(
    key: Annotated[
        str, typer.Argument(help="Backtest of a trial, such as aapl_ppo/backtest/base.f0.s0.")
    ],
    tracking_uri: Annotated[
        str | None,
        typer.Option(help="A server, sqlite:///FILE or file:///FOLDER; default: mlflow.db here."),
    ] = None,
    experiment: Annotated[
        str | None, typer.Option(help="MLflow's experiment; default: that of the trial.")
    ] = None,
    version: VersionOption = None,
    store: StoreOption = None,
) -> None:
    """Write a trial as a run of MLflow: params, metrics, artefacts; once for each version.

    MLFLOW_TRACKING_URI counts where no --tracking-uri is given, and keeps a secret out of sight.
    """
    from trade_pipeline.backtest.export import mlflow
    from trade_pipeline.backtest.export.sources import backtest_sources

    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    try:
        location = bundles.find(_folder(store), key, version)
        sources = backtest_sources(location)
        logged = mlflow.log_backtest(sources, uri, experiment, round(time.time() * 1000))
    except (StorageError, ValueError) as error:
        _stop(error)
    done = "written" if logged.new else "there already, left as it is"
    print(
        f"{key} version {location.path.name}: run {logged.run_id} of experiment "
        f"{logged.experiment} at {mlflow.without_secrets(uri)}, {done}"
    )


@bundle.command("compare")
def side_by_side(
    a: Annotated[str, typer.Argument(help="Key of a report or backtest, or KEY@VERSION.")],
    b: Annotated[str, typer.Argument(help="The other one.")],
    to: Annotated[Path, typer.Option(help="Page to write.")],
    force: ForceOption = False,
    store: StoreOption = None,
) -> None:
    """Write one offline page with two results side by side; what makes them unlike is on top."""
    from trade_pipeline.backtest.compare.differences import doubts
    from trade_pipeline.backtest.compare.page import comparison
    from trade_pipeline.backtest.compare.sides import load_side

    try:
        sides = [load_side(_folder(store), name) for name in (a, b)]
        with archives.new_file(to, force) as target:
            target.write_text(comparison(*sides), encoding="utf-8")
    except (StorageError, ValueError) as error:
        _stop(error)
    for line in doubts(*sides):
        print(line)
    print(f"{to}: {a} beside {b}")


@bundle.command("import")
def import_bundle(
    source: Annotated[Path, typer.Argument(help="A policy bundle from elsewhere: zip or folder.")],
    key: Annotated[str, typer.Option("--as", help="Key to keep it as: imported/<name>.")],
    store: StoreOption = None,
) -> None:
    """Take a policy from elsewhere into the store, if everything about it holds."""
    from trade_pipeline.training import importing

    try:
        location = importing.import_policy(source, ArtifactLocation(_folder(store), key))
    except (StorageError, ValueError) as error:
        _stop(error)
    print(f"{key}: version {location.path.name}, imported and verified")


@bundle.command()
def prune(
    key: KeyArgument,
    keep: Annotated[int, typer.Option(min=1, help="Newest versions to keep.")] = 3,
    store: StoreOption = None,
) -> None:
    """Remove old versions of a bundle; the current one always stays."""
    try:
        location = ArtifactLocation(_folder(store), key)
        bundles.find(location.store, key)
        # What a promotion points to is in use, and promotions are the record of the final period.
        removed = bundles.prune(location, keep, pinned(location))
    except (StorageError, ValueError) as error:
        _stop(error)
    print(f"{key}: {len(removed)} versions removed{': ' if removed else ''}{', '.join(removed)}")


@app.command()
def reproduce(
    key: Annotated[
        str, typer.Argument(help=f"Dataset, regime model, policy or backtest, {KEY_EXAMPLE}.")
    ],
    version: VersionOption = None,
    store: StoreOption = None,
    keep: Annotated[
        Path | None, typer.Option(help="Rebuild in this empty folder, and leave it there.")
    ] = None,
) -> None:
    """Rebuild a bundle from what it records, in a clean store; exit 0 only if the hashes match.

    Otherwise the first input that differs is named. The store itself is only read.
    """
    from trade_pipeline.backtest.reproduce import reproduce as rebuild
    from trade_pipeline.features.plugins.loading import load_plugins

    try:
        location = bundles.find(_folder(store), key, version)
        with _clean_folder(keep, location.store) as work:
            plugins = load_plugins(Places.from_environment(os.environ).indicator_files)
            done = rebuild(
                location, work, lambda line: print(line, flush=True), time.monotonic, plugins
            )
    except (StorageError, ValueError) as error:
        _stop(error)
    if not done.matches:
        _stop(str(done))
    print(done)


def _is_key(name: str, store: Path | None) -> bool:
    """Whether a bundle's name is a key of the store; a path if it is none but lies somewhere."""
    path = Path(name)
    if not path.exists():
        return True
    try:
        key = ArtifactLocation(_folder(store), name)
    except StorageError:
        return False
    return key.path.is_dir() and not (path / bundles.INDEX).exists()


def _folder(store: Path | None) -> Path:
    return Places.from_environment(os.environ).store if store is None else store.resolve()


@contextmanager
def _clean_folder(keep: Path | None, store: Path) -> Iterator[Path]:
    """An empty folder outside of the store; a temporary one when none is given."""
    if keep is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    folder = keep.resolve()
    if folder.is_relative_to(store.resolve()) or (folder.exists() and any(folder.iterdir())):
        raise StorageError(f"{keep}: must be an empty folder outside of the store.")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def _stop(error: Exception | str) -> NoReturn:
    print(error, file=sys.stderr)
    raise typer.Exit(code=1)


if __name__ == "__main__":
    app()
