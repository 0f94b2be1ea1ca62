"""`python -m textebm`."""

import sys

from textebm.cli import main

sys.exit(main())
