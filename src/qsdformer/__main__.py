"""`python -m qsdformer` is the command `qsd`."""

from qsdformer.cli import main

if __name__ == "__main__":
    main()
