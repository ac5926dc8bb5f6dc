"""Splits, datasets, trainers, policies and their bundles."""
