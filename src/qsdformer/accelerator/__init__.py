"""A sparse accelerator, simulated: what real spikes cost it in cycles, traffic and energy."""
