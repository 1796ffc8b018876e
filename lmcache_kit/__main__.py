"""``python -m lmcache_kit`` is ``lmcache-kit``."""

import sys

from lmcache_kit.cli import main

sys.exit(main())
