"""`python -m dialoom`, the same as `dialoom`."""

import sys

from dialoom.cli import main

sys.exit(main())
