"""Fetch a published set of photos: python -m utils.datasets clothing-10 [ARCHIVE]."""

import argparse
import sys

from . import published


def main(arguments=None):
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m utils.datasets", description="Fetch a published set of photos.")
    parser.add_argument("name", choices=published.SOURCES, help="the set; nothing is done if it is there already")
    parser.add_argument("archive", nargs="?", metavar="ARCHIVE", help="a .tar.gz or .zip that you downloaded yourself")
    options = parser.parse_args(arguments)
    try:
        print(published.fetch(options.name, archive=options.archive))
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\nStopped; nothing was left behind.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
