"""Published accelerators as data and formulas, for workloads of matrices of spikes.

Prosperity (arXiv 2503.03379) was published with a simulator of itself and of Eyeriss, PTB, SATO and
MINT, whose formulas these are. They know convolutions and linear layers on binary spikes, LIF
neurons and, of some designs, attention; not membrane shortcuts, norms or layers on real values.
"""
