"""Indicators of others: found, imported with care, tried. Start at `loading.load_plugins`."""
