"""Strategies that others wrote: found, imported in a process of their own, audited."""
