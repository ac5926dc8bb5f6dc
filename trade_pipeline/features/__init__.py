"""Indicators, feature tables and the causality check."""
