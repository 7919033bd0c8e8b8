"""Ways to execute a network, and what compares and times them."""
