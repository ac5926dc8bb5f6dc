"""Where a task runs: on this machine or elsewhere."""
