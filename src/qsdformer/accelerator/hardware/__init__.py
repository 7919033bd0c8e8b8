"""Units of a sparse accelerator in Amaranth, a hardware description language in Python.

Needs the optional extra "hardware". The cycle counts that each unit's docstring promises are those
of the simulated circuit, to the cycle.
"""
