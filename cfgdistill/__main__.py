"""`python -m cfgdistill`."""

import sys

from cfgdistill.cli import main

sys.exit(main())
