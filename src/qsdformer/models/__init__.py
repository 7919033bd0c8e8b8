"""Networks, one file a family, with the checkpoints that hold them."""
