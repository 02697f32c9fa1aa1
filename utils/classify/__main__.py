"""``python -m utils.classify PHOTO …``, or from any folder: ``python PATH/TO/utils/classify PHOTO …``"""

import pathlib
import sys

if not __package__:
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[2])

from utils.classify import run

if __name__ == "__main__":
    sys.exit(run())
