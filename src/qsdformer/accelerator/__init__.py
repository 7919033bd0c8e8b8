"""Sparse accelerators: what designs make of real spikes, in cycles, traffic and energy."""
