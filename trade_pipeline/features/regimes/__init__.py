"""Market regimes: a hidden Markov model fitted on training rows, and its causal filter."""
