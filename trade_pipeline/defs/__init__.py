"""The Dagster shell: what exists, what depends on what, when it runs."""
