"""Where data, caches and runs lie, and files that are written whole or not at all.

Every artefact of the project (weights, results, converted models, caches) goes through :func:`atomic_path`: the bytes
are written beside their target, flushed to the disk, and moved over the target in one step. A run that is killed at
any moment leaves either the old file or the new one, never half of one.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import secrets
import shutil
import tempfile

import numpy as np

PROJECT = pathlib.Path(__file__).resolve().parents[1]


def data_root(root=None):
    """The folder that holds the published photos: `root`, else CLOTHING_DATA_DIR, else `data/` of the project."""
    return _absolute(root or os.environ.get("CLOTHING_DATA_DIR") or PROJECT / "data")


def drawings_root(root=None):
    """The folder for synthetic drawings: `root`, else `data/` of the project (never among somebody's photos)."""
    return _absolute(root or PROJECT / "data")


def cache_dir(folder=None):
    """The folder for what can be computed again: `folder`, else CLOTHING_CACHE_DIR, else `data/.cache`."""
    return _absolute(folder or os.environ.get("CLOTHING_CACHE_DIR") or PROJECT / "data" / ".cache")


def runs_dir(folder=None):
    """The folder that holds training runs: `folder`, else CLOTHING_RUNS_DIR, else `runs/` of the project."""
    return _absolute(folder or os.environ.get("CLOTHING_RUNS_DIR") or PROJECT / "runs")


@contextlib.contextmanager
def atomic_path(target):
    """A temporary path beside `target` that becomes `target` when the block ends without an error.

    Args:
        target: the file to write; missing parent folders are made.

    Yields:
        pathlib.Path with the same suffixes as the target (Keras and NumPy choose a format by suffix).

    Raises:
        OSError: the folder cannot be written to, or the disk is full; names the target. Nothing is left behind.

    Example:
        >>> import tempfile; folder = pathlib.Path(tempfile.mkdtemp())
        >>> with atomic_path(folder / "a.txt") as part:
        ...     _ = part.write_text("whole")
        >>> (folder / "a.txt").read_text(), len(list(folder.iterdir()))
        ('whole', 1)
    """
    target = pathlib.Path(target)
    part = target.with_name(f".{secrets.token_hex(4)}.part.{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        _flush(part)
        part.replace(target)
    except OSError as error:
        raise _named(error, target) from error
    finally:
        with contextlib.suppress(OSError):  # a read-only disk refuses this too, and must not hide the named error
            part.unlink()


def write_bytes(target, data):
    """Write `data` (bytes) to `target`, whole or not at all."""
    with atomic_path(target) as part:
        part.write_bytes(data)


def write_text(target, text):
    """Write `text` (str, UTF-8) to `target`, whole or not at all."""
    write_bytes(target, text.encode("utf-8"))


def write_json(target, value):
    """Write `value` as indented JSON, whole or not at all; NaN and infinity are refused (they are not JSON)."""
    write_text(target, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_arrays(target, arrays):
    """Write arrays (dict of name -> array) as a compressed .npz, whole or not at all.

    Returns:
        dict name, sha256, size_bytes: what a record that vouches for the file has to say of it.

    Example:
        >>> import tempfile; folder = pathlib.Path(tempfile.mkdtemp())
        >>> entry = write_arrays(folder / "a.npz", {"x": [1, 2]})
        >>> entry["name"], entry["size_bytes"] == (folder / "a.npz").stat().st_size
        ('a.npz', True)
    """
    target, buffer = pathlib.Path(target), io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    data = buffer.getvalue()
    write_bytes(target, data)
    return {"name": target.name, "sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}


def read_json(path):
    """Read a JSON file; a damaged one is named.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON; the message names it and says to delete it and run again.
    """
    path = pathlib.Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, an endless number, too deep
        raise ValueError(
            f"{path} is not a JSON file ({error}); delete it and run the step that writes it again"
        ) from error


def _flush(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _named(error, target):
    reason = os.strerror(error.errno) if error.errno else str(error)  # not its text, which may be such a sentence
    return type(error)(error.errno, f"cannot write {target}: {reason}; free some space or choose another folder")


def build_once(folder, make):
    """Make a folder whole or not at all; do nothing if it is there. A second process waits for the first.

    Args:
        folder: the folder to make; it is returned as a pathlib.Path.
        make: callable that fills the temporary pathlib.Path that it gets, which is then renamed.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; names the folder. Nothing is left behind.

    Example:
        >>> root = pathlib.Path(tempfile.mkdtemp())
        >>> build_once(root / "a", lambda part: (part / "x.txt").write_text("whole")).name, os.listdir(root / "a")
        ('a', ['x.txt'])
    """
    folder = _absolute(folder)
    if folder.is_dir():
        return folder
    try:
        with lock(folder):
            if folder.is_dir():
                return folder
            for left in folder.parent.glob(f".{folder.name}.*.part"):  # of a killed process; we hold the lock
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
        raise _named(error, folder) from error
    return folder


@contextlib.contextmanager
def lock(target):
    """Hold the lock of `target` (a hidden file beside it); where the system has no file locks, hold nothing."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = (target.parent / f".{target.name}.lock").open("w")
    except OSError as error:
        raise _named(error, target) from error
    with file:
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)  # the system lets go of it when the process dies, however it dies
        yield


def _absolute(path):
    return pathlib.Path(path).expanduser().absolute()
