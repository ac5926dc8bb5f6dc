"""Metrics and trade reconstruction."""
