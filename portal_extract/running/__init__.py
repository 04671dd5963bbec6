"""Schedulers, progress events, journal and resume."""
