"""Strategies, the engine and reports."""
