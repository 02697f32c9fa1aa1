"""Where things lie on this machine, and folders that appear whole or not at all."""

import contextlib
import os
import pathlib
import shutil
import tempfile

PROJECT = pathlib.Path(__file__).resolve().parent.parent


def data_root(root=None):
    """The folder that holds `clothing-dataset-small/` and `clothing-dataset/`.

    `root` if given, else the environment variable CLOTHING_DATA_DIR, else `data/` of the project.
    """
    return _absolute(root or os.environ.get("CLOTHING_DATA_DIR") or PROJECT / "data")


def drawings_root(root=None):
    """The folder for drawn garments: `root` if given, else `data/` of the project (never among somebody's photos)."""
    return _absolute(root or PROJECT / "data")


def cache_dir(folder=None):
    """The folder for what can be computed again: `folder`, CLOTHING_CACHE_DIR, or the project's `data/.cache`."""
    return _absolute(folder or os.environ.get("CLOTHING_CACHE_DIR") or PROJECT / "data" / ".cache")


def build_once(folder, make):
    """Make a folder whole or not at all; do nothing if it is there.

    `make` fills a temporary folder beside it, which is then renamed. What a killed run left behind is removed, and a
    second process that wants the same folder waits for the first.

    Args:
        folder: the folder to make.
        make: callable that takes the temporary pathlib.Path and fills it.

    Returns:
        pathlib.Path of the folder.

    Raises:
        OSError: the place cannot be written to, or the disk is full; names the folder. Nothing is left behind.

    Example:
        >>> root = pathlib.Path(tempfile.mkdtemp())
        >>> build_once(root / "a", lambda part: (part / "x.txt").write_text("whole")).name, os.listdir(root / "a")
        ('a', ['x.txt'])
    """
    folder = _absolute(folder)
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock(folder):
            if folder.is_dir():
                return folder
            for left in folder.parent.glob(f".{folder.name}.*.part"):
                shutil.rmtree(left, ignore_errors=True)
            part = pathlib.Path(tempfile.mkdtemp(".part", f".{folder.name}.", folder.parent))
            try:
                part.chmod(0o755)
                make(part)
                part.replace(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        if error.filename is None and error.errno is None:  # a network error, which names itself
            raise
        raise named(error, folder) from error
    return folder


@contextlib.contextmanager
def lock(target):
    """Hold the lock of `target` (a hidden file beside it); where the system has no file locks, hold nothing."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (target.parent / f".{target.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the system lets go of it when the process dies, however it dies
        yield


def named(error, target):
    """The OSError again, with a sentence that names `target` and says what to do."""
    reason = os.strerror(error.errno) if error.errno else str(error)  # not its text, which may be such a sentence
    return type(error)(error.errno, f"cannot write {target}: {reason}; free some space or choose another folder")


def _absolute(path):
    return pathlib.Path(path).expanduser().absolute()
