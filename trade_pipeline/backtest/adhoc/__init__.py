"""A backtest that somebody asks for, of any saved policy or rule over any stored range."""
