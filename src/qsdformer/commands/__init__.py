"""One module for each sub-command of `qsd`: `add_arguments(parser)` and `run(options)`."""
