"""Reading a PyTorch checkpoint (legacy ``.pth``) as NumPy arrays, without torch and without running anything in it.

A legacy checkpoint is four pickles (magic number, protocol version, machine facts, the state dictionary), a fifth with
the storage keys, then for each key eight bytes of element count and the raw little-endian storage. A pickle is a
program, so two gates stand before it is run: only the opcodes that a state dictionary needs are let through, and the
only names it may ask for are ``OrderedDict``, ``_rebuild_tensor_v2`` and the typed storages, each answered by an inert
stand-in of this module. Everything else is refused with a sentence.

Source of the format: ``torch/serialization.py``, ``_legacy_save`` (PyTorch 1.x).
"""

import collections
import io
import math
import pathlib
import pickle
import pickletools
import struct

import numpy as np

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
MAX_FILE_BYTES = 1 << 30  # a gibibyte: fifty times EfficientNet-Lite0, and still a file that fits in memory
MAX_PICKLE_OPCODES = 2_000_000

_STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8",
    "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1", "BoolStorage": "<?",
}  # fmt: skip
# What a state dictionary is written with. Left out on purpose: everything that makes instances (INST, OBJ, NEWOBJ),
# extensions, buffers, frames, and the numbers and strings that no state dictionary holds.
_OPCODES = {
    "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "NONE", "NEWTRUE", "NEWFALSE", "BININT",
    "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2",
    "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT",
    "BINGET", "LONG_BINGET",
}  # fmt: skip


class UnsafeCheckpoint(ValueError):
    """The file asks for something that a file of tensors has no need of."""


def read_state_dict(path):
    """Tensors of a legacy PyTorch checkpoint, by name.

    Args:
        path: a ``.pth`` file whose content is a state dictionary (name -> tensor).

    Returns:
        dict of str -> numpy.ndarray, own copies, in the file's order and the file's axis order (a convolution's
        kernel is out, in, height, width).

    Raises:
        FileNotFoundError: there is no such file.
        UnsafeCheckpoint: a pickle in it asks for anything but tensors (also a ValueError).
        ValueError: not a legacy checkpoint, truncated, damaged or absurdly large; names the file.

    Example:
        >>> from utils.models.efficientnet_lite import weights_path
        >>> tensors = read_state_dict(weights_path())
        >>> tensors["_conv_stem.weight"].shape
        (32, 3, 3, 3)
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; install the package that carries it or give another path")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path} is {path.stat().st_size:,} bytes; a checkpoint here has at most {MAX_FILE_BYTES:,}")
    data = path.read_bytes()
    try:
        return _read(data)
    except UnsafeCheckpoint as error:
        raise UnsafeCheckpoint(f"{path} is refused: {error}; take the file from a source you trust") from error
    except _BAD_DATA as error:
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise ValueError(f"{path} is not a whole legacy PyTorch checkpoint ({reason}); fetch it again") from error


# What pickle, pickletools, struct and numpy raise on bytes that are not what they should be.
_BAD_DATA = (
    pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError,
    struct.error, MemoryError, RecursionError,
)  # fmt: skip


def _read(data):
    if data[:4] == b"PK\x03\x04":
        raise ValueError("it is the zip format of newer PyTorch: save with _use_new_zipfile_serialization=False")
    stream = io.BytesIO(data)
    magic = _Unpickler.next_value(stream)
    if magic != MAGIC_NUMBER:
        raise ValueError("the magic number is missing")
    version = _Unpickler.next_value(stream)
    if version != PROTOCOL_VERSION:
        raise ValueError(f"its protocol is {version!r}, not {PROTOCOL_VERSION}")
    machine = _Unpickler.next_value(stream)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("it was not written on a little-endian machine")
    storages = {}
    state = _Unpickler.next_value(stream, storages)
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ValueError("it does not hold a dictionary of tensors")
    for name, tensor in state.items():
        if not isinstance(tensor, _Tensor):
            raise ValueError(f"its entry {name!r} is not a tensor")
    _fill(stream, storages)
    return {name: tensor.array() for name, tensor in state.items()}


def _fill(stream, storages):
    """Read every storage's raw elements; the sizes in the pickle, before the storage and in the file must agree."""
    keys = _Unpickler.next_value(stream)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("its list of storages is damaged")
    if sorted(keys) != sorted(storages):
        raise ValueError("its list of storages is not the one that its tensors use")
    for key in keys:
        storage = storages[key]
        (count,) = struct.unpack("<q", stream.read(8))
        if count != storage.count:
            raise ValueError(f"storage {key} says {count} elements where its tensors say {storage.count}")
        raw = stream.read(count * storage.dtype.itemsize)
        if len(raw) != count * storage.dtype.itemsize:
            raise ValueError(f"it ends inside storage {key}")
        storage.elements = np.frombuffer(raw, storage.dtype)
    if stream.read(1):
        raise ValueError("bytes follow the last storage")


class _Inert:
    """A stand-in that a pickle can name but neither alter nor look into."""

    __slots__ = ()

    def __setstate__(self, state):
        raise UnsafeCheckpoint("it tries to alter what it is read with")


class _MakeDictionary(_Inert):
    __slots__ = ()

    def __call__(self, *arguments):
        if arguments:
            raise UnsafeCheckpoint("it makes a dictionary in an unknown way")
        return _Dictionary()


class _Dictionary(collections.OrderedDict):
    """An ordered dictionary that ignores the attributes a state dictionary comes with (its ``_metadata``)."""

    def __setstate__(self, state):
        if not isinstance(state, dict):
            raise UnsafeCheckpoint("it tries to alter a dictionary in an unknown way")


class _StorageType(_Inert):
    __slots__ = ("dtype",)

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)


class _Storage(_Inert):
    __slots__ = ("count", "dtype", "elements")

    def __init__(self, dtype, count):
        self.dtype, self.count, self.elements = dtype, count, None


class _Tensor(_Inert):
    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage, offset, shape, strides):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self):
        itemsize = self.storage.dtype.itemsize
        view = np.lib.stride_tricks.as_strided(
            self.storage.elements[self.offset :], self.shape, [stride * itemsize for stride in self.strides]
        )
        return np.array(view, dtype=self.storage.dtype.newbyteorder("="), order="C")


class _RebuildTensor(_Inert):
    __slots__ = ()

    def __call__(self, storage, offset, shape, strides, requires_grad=False, backward_hooks=None, *rest):
        if not isinstance(storage, _Storage) or rest or backward_hooks:
            raise UnsafeCheckpoint("it rebuilds a tensor in an unknown way")
        if not isinstance(shape, tuple) or not isinstance(strides, tuple) or len(shape) != len(strides):
            raise ValueError("a tensor's shape and strides do not fit each other")
        numbers = (offset, *shape, *strides)
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("a tensor's offset, shape or strides are not whole numbers from 0 up")
        # No more elements than the storage has: a stride of 0 could otherwise ask for terabytes.
        elements = math.prod(shape)
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if elements > storage.count or (elements and last >= storage.count) or offset > storage.count:
            raise ValueError(f"a tensor of shape {shape} does not fit in its storage of {storage.count} elements")
        return _Tensor(storage, offset, shape, strides)


class _Unpickler(pickle.Unpickler):
    """Answers the few names of a state dictionary with stand-ins and refuses all others."""

    @classmethod
    def next_value(cls, stream, storages=None):
        """The value of the pickle at the stream's position, which moves behind it."""
        start = stream.tell()
        _check_opcodes(stream)
        # Only these bytes: the C unpickler reads ahead, and must not see the raw storages.
        return cls(io.BytesIO(stream.getbuffer()[start : stream.tell()]), storages).load()

    def __init__(self, stream, storages):
        super().__init__(stream)
        self._storages = storages
        self._known = {
            ("collections", "OrderedDict"): _MakeDictionary(),
            ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
            **{("torch", name): _StorageType(dtype) for name, dtype in _STORAGES.items()},
        }

    def find_class(self, module, name):
        try:
            return self._known[module, name]
        except KeyError:
            raise UnsafeCheckpoint(f"it asks for {module}.{name}, which no file of tensors needs") from None

    def persistent_load(self, identifier):
        if self._storages is None or not isinstance(identifier, tuple) or len(identifier) != 6:
            raise UnsafeCheckpoint("it refers to a storage in an unknown way")
        kind, storage_type, key, _location, count, view = identifier
        if kind != "storage" or not isinstance(storage_type, _StorageType) or not isinstance(key, str) or view:
            raise UnsafeCheckpoint("it refers to a storage in an unknown way")
        if type(count) is not int or not 0 <= count * storage_type.dtype.itemsize <= MAX_FILE_BYTES:
            raise ValueError(f"storage {key} claims {count!r} elements")
        storage = self._storages.setdefault(key, _Storage(storage_type.dtype, count))
        if (storage.dtype, storage.count) != (storage_type.dtype, count):
            raise ValueError(f"storage {key} is described in two ways")
        return storage


def _check_opcodes(stream):
    """Move the stream behind one pickle, having seen every opcode of it and run none."""
    limit = len(stream.getbuffer())
    for number, (opcode, argument, _position) in enumerate(pickletools.genops(stream)):
        if opcode.name not in _OPCODES:
            raise UnsafeCheckpoint(f"it uses the pickle operation {opcode.name}, which no file of tensors needs")
        # The unpickler's memo grows to the largest index at once: an index of 2**32 would take 64 GB.
        if number > MAX_PICKLE_OPCODES or (opcode.name == "LONG_BINPUT" and argument > limit):
            raise UnsafeCheckpoint("its pickle is absurdly large")
