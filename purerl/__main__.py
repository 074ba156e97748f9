"""``python -m purerl``: the command line."""

import sys

from purerl.cli import main

sys.exit(main())
