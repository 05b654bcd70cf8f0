"""``python -m countgen``, the same as the command ``countgen``."""

import sys

from countgen.cli import main

if __name__ == "__main__":
    sys.exit(main())
