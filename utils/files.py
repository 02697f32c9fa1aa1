"""Files that are written whole or not at all.

Every artefact of the project (weights, results, converted models, caches) goes through :func:`atomic_path`: the bytes
are written beside their target, flushed to the disk, and moved over the target in one step. A run that is killed at
any moment leaves either the old file or the new one, never half of one.
"""

import contextlib
import glob
import hashlib
import io
import json
import os
import pathlib
import secrets
import time

import numpy as np

ABANDONED_S = 86400  # nothing here takes a day to write: an unfinished file that old is a killed process's


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
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _named(error, target) from error
    _remove_abandoned(target)
    part = target.with_name(f".{secrets.token_hex(4)}.part.{target.name}")
    try:
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


def write_together(contents):
    """Write several files (dict of target -> bytes), all of them to the disk before the first takes its place.

    A full disk therefore leaves all the old files as they were. The last one takes its place first.
    """
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(atomic_path(target)) for target in contents]
        for part, data in zip(parts, contents.values(), strict=True):
            part.write_bytes(data)
            _flush(part)


def write_text(target, text):
    """Write `text` (str, UTF-8) to `target`, whole or not at all."""
    write_bytes(target, text.encode("utf-8"))


def write_json(target, value):
    """Write `value` as indented JSON, whole or not at all; NaN and infinity are refused (they are not JSON)."""
    write_bytes(target, json_bytes(value))


def json_bytes(value):
    """`value` as the bytes that :func:`write_json` writes."""
    return (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode("utf-8")


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
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a JSON file ({error}); delete it and run the step that writes it again"
        ) from error


def _flush(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(target):
    """Remove what killed processes left of this target; a part that somebody may be writing now stays."""
    for part in target.parent.glob(f".{'[0-9a-f]' * 8}.part.{glob.escape(target.name)}"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > ABANDONED_S:
                part.unlink()


def _named(error, target):
    reason = os.strerror(error.errno) if error.errno else str(error)  # not its text, which may be such a sentence
    return type(error)(error.errno, f"cannot write {target}: {reason}; free some space or choose another folder")
