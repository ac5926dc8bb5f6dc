"""Bars, calendars, coverage and where they come from."""
