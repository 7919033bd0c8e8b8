"""Grids of runs with their report, and the quickstart."""
