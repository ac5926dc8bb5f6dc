"""From raw exchange data to a trained, backtested trading policy, as Dagster assets.

The notebook face reads what the assets stored, without Dagster:

    import trade_pipeline as tp
    bars = tp.load_bars("sample.AAPL.1d")
    result = tp.backtest(tp.load_policy("aapl_ppo", "base.f0.s0"))
"""

import os
import platform
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trade_pipeline.notebook import (
        adhoc_backtest,
        backtest,
        compare,
        load_bars,
        load_features,
        load_policy,
    )

# Libraries choose their kernels by the processor, and other kernels give other last bits: one
# family everywhere, so that a training gives the same policy here and on a rented machine. Read
# when those libraries load, hence first of all.
if platform.machine() in ("x86_64", "AMD64"):
    os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")
    os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")

__all__ = ["adhoc_backtest", "backtest", "compare", "load_bars", "load_features", "load_policy"]


def __getattr__(name: str) -> Any:
    # Imported on first use: the notebook face brings torch along, the code location must load fast.
    if name in __all__:
        from trade_pipeline import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Face(ModuleType):
    """This package, where `backtest` is the function although a folder bears that name too."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Python puts an imported folder here; `backtest` would stand in the function's place.
        if name not in __all__ or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
