"""``python -m study …``"""

import sys

from .recipes import main

if __name__ == "__main__":
    sys.exit(main())
