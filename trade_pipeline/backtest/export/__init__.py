"""Finished results as files for elsewhere: a zip of a report, a run in MLflow."""
