"""One module a source of bars."""
