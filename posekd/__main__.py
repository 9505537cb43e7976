"""`python -m posekd` is `posekd`."""

import sys

from posekd.cli import main

sys.exit(main())
