"""``python -m runnel``: the command line."""

import sys

from runnel.tools.cli import main

sys.exit(main())
