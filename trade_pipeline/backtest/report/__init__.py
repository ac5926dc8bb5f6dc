"""The HTML report and the pictures of a backtest."""
