"""`python -m repflow` is the command `repflow`."""

import sys

from repflow.cli import main

if __name__ == "__main__":
    sys.exit(main())
