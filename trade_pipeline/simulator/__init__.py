"""One kernel for training, backtest and paper trading."""
