"""``python -m dgmbench`` is ``dgm``."""

import sys

from dgmbench.cli import main

sys.exit(main())
