"""From raw exchange data to a trained, backtested trading policy, as Dagster assets.

The notebook face reads what the assets stored, without Dagster:

    import trade_pipeline as tp
    bars = tp.load_bars("sample.AAPL.1d")
    result = tp.backtest(tp.load_policy("aapl_ppo", "base.f0.s0"))
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trade_pipeline.notebook import backtest, load_bars, load_features, load_policy

__all__ = ["backtest", "load_bars", "load_features", "load_policy"]


def __getattr__(name: str) -> Any:
    # Imported on first use: the notebook face brings torch along, the code location must load fast.
    if name in __all__:
        from trade_pipeline import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
