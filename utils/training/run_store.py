"""A run's folder on disk: one state file that names what belongs to it, checkpoints written whole, one owner at a time.

``state.json`` is the only thing that counts: it holds the history and names the checkpoint and the best weights with
their SHA-256. A new checkpoint is written beside the old one, then the state file is replaced in one step, then the old
checkpoint is removed; a run that is killed at any moment is therefore whole at its last epoch.
"""

import contextlib
import hashlib
import io
import os
import pathlib
import warnings
import zipfile

import numpy as np

from utils import files

try:
    import fcntl
except ImportError:  # Windows: no advisory locks; two processes must not train the same run there
    fcntl = None

SCHEMA = 1
STATE = "state.json"


class DamagedRun(ValueError):
    """A run folder does not hold what its state file says."""


class RunBusy(RuntimeError):
    """Another process trains the same run."""


class RunStore:
    """The folder of one run.

    Args:
        folder: ``runs/<run_id>``; made when something is first written.

    Example:
        >>> import tempfile; store = RunStore(pathlib.Path(tempfile.mkdtemp()) / "demo")
        >>> with store.lock():
        ...     state = store.save({"epochs_done": 1}, checkpoint={"w": np.ones(2)})
        >>> store.read()["epochs_done"], store.arrays(store.read(), "checkpoint")["w"]
        (1, array([1., 1.]))
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    @contextlib.contextmanager
    def lock(self):
        """Own the run inside the block; the lock ends with the process, however it ends.

        Raises:
            RunBusy: another process owns it; names the process.
            OSError: the folder of the runs cannot be written to.
        """
        path = self.folder.parent / ".locks" / f"{self.folder.name}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = path.open("a+")
        except OSError as error:
            raise type(error)(
                error.errno,
                f"cannot write to {self.folder.parent}: {error.strerror}; set CLOTHING_RUNS_DIR to a folder of yours",
            ) from error
        with handle:
            if fcntl:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    handle.seek(0)
                    owner = handle.read().strip() or "unknown"
                    raise RunBusy(
                        f"run {self.folder.name} is being trained by process {owner}; "
                        "wait for it, or name another folder"
                    ) from None
            handle.seek(0)
            handle.truncate()
            handle.write(str(os.getpid()))
            handle.flush()
            self._remove_unfinished()
            yield self

    def read(self):
        """The state, or None where there is no run yet.

        Raises:
            DamagedRun: the folder is there, but not its state file, or a file is missing or not what was written.
        """
        if not self.folder.exists():
            return None
        path = self.folder / STATE
        if not path.exists():
            if all(".part." in item.name for item in self.folder.iterdir()):
                return None  # killed before the first state was whole
            raise DamagedRun(f"{STATE} is missing")
        try:
            state = files.read_json(path)
        except (ValueError, OSError) as error:
            raise DamagedRun(f"{STATE} cannot be read ({error})") from error
        if not isinstance(state, dict) or state.get("schema") != SCHEMA or not isinstance(state.get("files"), dict):
            raise DamagedRun(f"{STATE} is not one of this version")
        for entry in state["files"].values():
            self._check(entry)
        return state

    def arrays(self, state, kind):
        """dict name -> array of the file of `kind` ("checkpoint", "best", "weights") that `state` names.

        Raises:
            DamagedRun: the state names no such file, or it is not readable.
        """
        entry = state["files"].get(kind)
        if entry is None:
            raise DamagedRun(f"{STATE} names no {kind}")
        return read_arrays(self.folder / entry["name"])

    def save(self, state, **arrays):
        """Write arrays (kind -> dict name -> array; None drops the kind) and then the state that names them.

        Returns:
            dict, the state as written.
        """
        entries = dict(state.get("files", {}))
        for kind, values in arrays.items():
            if values is None:
                entries.pop(kind, None)
                continue
            data = pack(values)
            digest = hashlib.sha256(data).hexdigest()
            entries[kind] = {"name": f"{kind}-{digest[:12]}.npz", "sha256": digest, "size_bytes": len(data)}
            files.write_bytes(self.folder / entries[kind]["name"], data)
        state = {**state, "schema": SCHEMA, "files": entries}
        files.write_json(self.folder / STATE, state)
        kept = {entry["name"] for entry in entries.values()}
        for path in self.folder.glob("*-*.npz"):
            if path.name not in kept:
                path.unlink(missing_ok=True)
        return state

    def set_aside(self, reason, mark="damaged"):
        """Rename the folder, so that nothing of it is used and nothing is lost; says so in a warning."""
        number = 1
        while (target := self.folder.with_name(f"{self.folder.name}.{mark}-{number}")).exists():
            number += 1
        self.folder.rename(target)
        warnings.warn(f"run {self.folder.name}: {reason}; the folder was set aside as {target.name}", stacklevel=3)
        return target

    def _check(self, entry):
        path = self.folder / entry["name"]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DamagedRun(f"{path.name} cannot be read ({error.strerror})") from error
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise DamagedRun(f"{path.name} is not what was written ({len(data):,} of {entry['size_bytes']:,} bytes)")

    def _remove_unfinished(self):
        # Whoever holds the lock is alone here: every unfinished file is a dead process's.
        for path in self.folder.glob(".*.part.*"):
            path.unlink(missing_ok=True)


def pack(arrays):
    """Arrays by name as the bytes of an ``.npz`` file (no pickle)."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.asarray(value) for name, value in arrays.items()})
    return buffer.getvalue()


def read_arrays(path):
    """dict name -> array of an ``.npz`` file; nothing in it is executed.

    Raises:
        DamagedRun: missing or not such a file; names it.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DamagedRun(f"{pathlib.Path(path).name} cannot be read ({error})") from error


def variables_to_arrays(variables):
    """Keras variables as arrays, named by position and kind, e.g. ``"0003.kernel"``."""
    return {name: value_of(variable) for name, variable in zip(_names(variables), variables, strict=True)}


def value_of(variable):
    """A copy of a Keras variable as a NumPy array, also of one that is mirrored on several devices."""
    return np.array(variable.value.numpy())


def _names(variables):
    # The last word of a name: what comes before ("sequential_3_dense_1_kernel_velocity") counts layers of the process.
    return [f"{i:04d}.{variable.name.replace('/', '_').split('_')[-1]}" for i, variable in enumerate(variables)]


def assign(variables, arrays, what):
    """Give Keras variables the values that :func:`variables_to_arrays` took.

    Raises:
        DamagedRun: names, number or shapes differ; nothing is assigned then.
    """
    wanted = _names(variables)
    if sorted(arrays) != sorted(wanted):
        raise DamagedRun(
            f"the {what} hold {len(arrays)} arrays that are not those of the model's {len(wanted)} variables"
        )
    for name, variable in zip(wanted, variables, strict=True):
        if tuple(arrays[name].shape) != tuple(variable.shape):
            raise DamagedRun(
                f"{name} of the {what} has shape {arrays[name].shape}, the model needs {tuple(variable.shape)}"
            )
    for name, variable in zip(wanted, variables, strict=True):
        variable.assign(arrays[name].astype(variable.dtype))
