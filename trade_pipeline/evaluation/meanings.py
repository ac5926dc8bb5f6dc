"""What each figure is, in a sentence: reports and docs/metrics.md have it from here.

Start at `meaning`.
"""

MEANINGS = {
    "sharpe": "Mean daily return above the risk-free rate over its standard deviation, times the "
    "root of days a year.",
    "sharpe_bar": "The Sharpe ratio of bars, times the root of bars a year; where neighbouring "
    "bars depend on each other it differs from that of days.",
    "psr": "Probability that the true Sharpe ratio is above 0, by the number, skew and kurtosis of "
    "daily returns; one trial is assumed.",
    "deflated_sharpe": "Probability that the true Sharpe ratio is above the best that chance gives "
    "so many trials.",
    "sortino": "As Sharpe, but only what falls short of the risk-free rate is risk, taken over all "
    "returns.",
    "volatility": "Standard deviation of returns a year.",
    "var_5": "The return that 5 % of returns lie below, counted rather than of a normal "
    "distribution.",
    "cvar_5": "Mean of the returns at or below the value at risk.",
    "omega": "Sum of what returns gain above the risk-free rate over the sum of what they fall "
    "short of it.",
    "tail_ratio": "Size of the return that 5 % lie above over that of the one 5 % lie below: under "
    "1, bad tails are the longer ones.",
    "hit_rate_day": "Share of gains among the days on which equity changed.",
    "hit_rate_bar": "Share of gains among the bars in which equity changed.",
    "skew": "Asymmetry of daily returns: below 0, the rare large ones are losses.",
    "kurtosis": "Weight of the tails of daily returns; 3 for a normal distribution.",
    "cagr": "The steady growth a year that gives the total return, a year being the bars of one.",
    "cagr_day": "The steady growth a year that gives the total return, a year being 365 or 252 "
    "days that have bars.",
    "cagr_calendar": "The steady growth a year that gives the total return, by the calendar.",
    "max_drawdown": "Deepest fall of equity below its highest value so far, at closes.",
    "calmar": "Annual growth over the size of the largest drawdown.",
    "longest_drawdown_days": "Calendar time from a high to the next one, or to the end.",
    "exposure": "Mean of what is held, long and short added, over equity.",
    "time_in_market": "Share of bars at whose close anything is held.",
    "turnover": "What is traded in a year over equity, buying and selling both counted.",
    "trades": "Closed round trips, from flat to flat.",
    "hit_rate": "Share of closed trades that earned something after costs.",
    "average_trade": "Mean result of closed trades after costs, in quote currency.",
    "profit_factor": "What winning trades earned over what losing ones lost, after costs.",
    "sqn": "Mean result of closed trades over its standard deviation, times the root of their "
    "number (Van Tharp): it grows with more trades.",
    "slippage_paid": "How much worse fills were than the prices that they were meant for.",
    "financing_paid": "Interest and funding, what was received taken off.",
    "gross_result": "Change in equity before fees, slippage and financing.",
    "fees_share": "Fees over the gross result.",
    "slippage_share": "Slippage over the gross result.",
    "financing_share": "Financing over the gross result.",
    "costs_share": "All costs over the gross result.",
    "alpha": "Annual return beyond what beta and the market's return explain.",
    "beta": "How much daily returns move with one of the market's.",
    "correlation": "How closely daily returns follow the market's, from -1 to 1.",
    "tracking_error": "Standard deviation a year of the daily difference to the market.",
    "information_ratio": "Mean daily difference to the market over its deviation, times the root "
    "of days a year.",
    "up_capture": "Annual growth on days when the market rose over the market's on these.",
    "down_capture": "Annual growth on days when the market fell over the market's on these; above "
    "1 it lost more.",
    "equity": "The largest start at which no order takes more than the share allowed of its bar.",
    "largest_share": "The largest part of a bar's volume that was traded.",
}
INTERVAL = "An end of the 95 % interval of block bootstraps of daily returns."
ENDINGS = {"_low": INTERVAL, "_high": INTERVAL}


def meaning(name: str) -> str | None:
    """What a figure is; None where its name says it.

    >>> meaning("volatility_bar") == meaning("volatility")
    True
    """
    for ending, words in ENDINGS.items():
        if name.endswith(ending):
            return words
    base = name.removesuffix("_bar").removesuffix("_day")
    return MEANINGS.get(name) or MEANINGS.get(base)
