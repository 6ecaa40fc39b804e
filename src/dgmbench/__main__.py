"""``python -m dgmbench`` is ``dgm``."""

import sys

from dgmbench.command.main import main

sys.exit(main())
