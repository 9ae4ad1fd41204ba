"""`python -m bursar.cli.demo`."""

import sys

from bursar.cli.demo.story import main

sys.exit(main())
