"""`trade-pipeline strategies`: what `baselines` of an experiment may name.

Start at `strategies`.
"""

import typer

from trade_pipeline.backtest.plugins.installed import StrategyError

strategies = typer.Typer(
    no_args_is_help=True, help="Rules and strategies that `baselines` may name."
)


@strategies.command("list")
def list_strategies() -> None:
    """Name, package with version, and parameters with defaults; a broken one, and why."""
    from trade_pipeline.backtest.plugins import listing

    try:
        for one in listing.list_strategies():
            print(one, flush=True)
    except StrategyError as error:
        print(f"broken: {error}")
