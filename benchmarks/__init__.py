"""Measurements of speed: ratios within one run, never part of the tests."""
