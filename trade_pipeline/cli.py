"""`trade-pipeline`: the few commands that are no asset."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from trade_pipeline.settings.project import Places
from trade_pipeline.storage import bundles
from trade_pipeline.storage.location import ArtifactLocation, StorageError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Commands of trade_pipeline that are no asset."
)
bundle = typer.Typer(no_args_is_help=True, help="Bundles of the store.")
indicators = typer.Typer(no_args_is_help=True, help="Indicators that a feature set may name.")
app.add_typer(bundle, name="bundle")
app.add_typer(indicators, name="indicators")

StoreOption = Annotated[
    Path | None,
    typer.Option(help="The store; default: TRADE_PIPELINE_STORE, else the folder store."),
]
KEY_EXAMPLE = "such as aapl_ppo/policy/base.f0.s0"
KeyArgument = Annotated[str, typer.Argument(help=f"Key in the store, {KEY_EXAMPLE}.")]


@bundle.command()
def verify(key: KeyArgument, store: StoreOption = None) -> None:
    """Hash every member of a bundle's current version and compare with its index."""
    try:
        location = bundles.current(ArtifactLocation(_folder(store), key))
        index = bundles.verify(location)
    except (StorageError, ValueError) as error:
        _stop(error)
    print(f"{key}: version {index['version']}, {len(index['members'])} members, all as recorded")


@bundle.command()
def prune(
    key: KeyArgument,
    keep: Annotated[int, typer.Option(min=1, help="Newest versions to keep.")] = 3,
    store: StoreOption = None,
) -> None:
    """Remove old versions of a bundle; the current one always stays."""
    try:
        location = ArtifactLocation(_folder(store), key)
        if not location.path.is_dir():
            raise StorageError(f"{location}: no such bundle; give its key, {KEY_EXAMPLE}.")
        removed = bundles.prune(location, keep)
    except (StorageError, ValueError) as error:
        _stop(error)
    print(f"{key}: {len(removed)} versions removed{': ' if removed else ''}{', '.join(removed)}")


@indicators.command("list")
def list_indicators() -> None:
    """Name, inputs and parameters with their defaults."""
    from trade_pipeline.features.registry import indicators as known

    for name, indicator in sorted(known().items()):
        parameters = ", ".join(
            f"{key}={'required' if field.is_required() else field.default}"
            for key, field in indicator.parameters.model_fields.items()
        )
        print(f"{name}: of {', '.join(indicator.inputs)}; {parameters or 'no parameters'}")


def _folder(store: Path | None) -> Path:
    return Places.from_environment(os.environ).store if store is None else store.resolve()


def _stop(error: Exception) -> None:
    print(error, file=sys.stderr)
    raise typer.Exit(code=1)


if __name__ == "__main__":
    app()
