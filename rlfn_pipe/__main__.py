"""`python -m rlfn_pipe` is the command `rlfn-pipe`."""

from __future__ import annotations

import sys

from rlfn_pipe.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
