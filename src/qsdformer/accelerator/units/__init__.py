"""Functional units: each computes on lists of addresses and counts what it did."""
