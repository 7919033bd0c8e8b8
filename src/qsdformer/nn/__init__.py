"""Layers: neurons, quantisers, attention, blocks and taps; pure functions, thin modules on them."""
