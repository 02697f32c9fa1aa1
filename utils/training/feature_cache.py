"""Feature vectors on disk, one SQLite file a backbone: safe against interruption, damage and a second process."""

import os
import pathlib
import sqlite3
import warnings
import zlib

import numpy as np


class FeatureCache:
    """Feature vectors on disk by key: one SQLite file, safe against interruption and against a second process.

    Each vector carries a checksum: a damaged one counts as missing, a damaged file is set aside with a warning.

    Example:
        >>> import tempfile; cache = FeatureCache(pathlib.Path(tempfile.mkdtemp()) / "f.sqlite")
        >>> cache.put({"a": np.ones(3, np.float32)})
        >>> cache.get(["a", "b"])
        {'a': array([1., 1., 1.], dtype=float32)}
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot make the feature cache {self.path.parent}: {error.strerror}; choose another cache_dir",
            ) from error

    def get(self, keys):
        """dict key -> float32 (D,) of those `keys` that are cached and whole."""
        found = {}
        keys = list(dict.fromkeys(keys))

        def read(connection):
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                marks = ",".join("?" * len(part))
                for key, blob, checksum in connection.execute(
                    f"SELECT key, value, checksum FROM features WHERE key IN ({marks})", part
                ):
                    if isinstance(blob, bytes) and zlib.crc32(blob) == checksum:
                        found[key] = np.frombuffer(blob, np.float32).copy()

        self._with_connection(read)
        return found

    def put(self, vectors):
        """Store dict key -> float32 (D,), all or none."""
        rows = []
        for key, vector in vectors.items():
            blob = np.ascontiguousarray(vector, np.float32).tobytes()
            rows.append((key, blob, zlib.crc32(blob)))
        self._with_connection(
            lambda connection: connection.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", rows)
        )

    def _with_connection(self, work):
        for attempt in (0, 1):
            connection = None
            try:
                connection = sqlite3.connect(self.path, timeout=60)
                with connection:
                    connection.execute(
                        "CREATE TABLE IF NOT EXISTS features (key TEXT PRIMARY KEY, value BLOB, checksum INT)"
                    )
                    work(connection)
                return
            except sqlite3.OperationalError as error:
                # Locked, read-only or full: the file is whole, and setting it aside would help nobody.
                raise OSError(
                    f"the feature cache {self.path} cannot be used ({error}); "
                    "free some space or choose another cache_dir"
                ) from error
            except sqlite3.DatabaseError as error:
                if attempt:
                    raise
                if connection:
                    connection.close()
                    connection = None
                aside = self.path.with_suffix(f".damaged-{os.getpid()}")
                self.path.replace(aside)
                for journal in ("-journal", "-wal", "-shm"):
                    self.path.with_name(self.path.name + journal).unlink(missing_ok=True)
                warnings.warn(
                    f"the feature cache {self.path} is damaged ({error}); "
                    f"it was set aside as {aside.name} and is made again",
                    stacklevel=3,
                )
            finally:
                if connection:
                    connection.close()
