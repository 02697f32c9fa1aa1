"""The reader of legacy PyTorch checkpoints: right on a real one, and closed to everything that is not a tensor."""

import collections
import io
import os
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.models import torch_weights
from utils.models.efficientnet_lite import weights_path
from utils.models.torch_weights import MAGIC_NUMBER, PROTOCOL_VERSION, UnsafeCheckpoint, read_state_dict


class _Global:
    """Pickles as a bare name, like the classes of a package that is not installed."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class _Call:
    def __init__(self, function, arguments, state=None):
        self.function, self.arguments, self.state = function, arguments, state


class _Pickler(pickle._Pickler):
    """Writes calls of names that need not exist; the pure-Python pickler, whose opcodes can be written by hand."""

    def __init__(self, stream):
        super().__init__(stream, protocol=2)

    def persistent_id(self, value):
        return value.reference if isinstance(value, _Storage) else None

    def save(self, value, save_persistent_id=True):
        if isinstance(value, _Global):
            self.write(f"c{value.module}\n{value.name}\n".encode())
        elif isinstance(value, _Call):
            self.save(value.function)
            self.save(value.arguments)
            self.write(pickle.REDUCE)
            if value.state is not None:
                self.save(value.state)
                self.write(pickle.BUILD)
        else:
            super().save(value, save_persistent_id)


class _Storage:
    def __init__(self, key, array, count=None, kind="FloatStorage"):
        self.array, self.key = np.asarray(array), key
        count = self.array.size if count is None else count
        self.reference = ("storage", _Global("torch", kind), key, "cpu", count, None)


REBUILD = _Global("torch._utils", "_rebuild_tensor_v2")
ORDERED_DICT = _Global("collections", "OrderedDict")


def tensor(storage, shape, strides, offset=0):
    return _Call(REBUILD, (storage, offset, shape, strides, False, _Call(ORDERED_DICT, ())))


def dump(value):
    stream = io.BytesIO()
    _Pickler(stream).dump(value)
    return stream.getvalue()


def checkpoint(state, storages=(), magic=MAGIC_NUMBER, version=PROTOCOL_VERSION, little_endian=True, keys=None):
    """The bytes of a legacy checkpoint; `state` is anything, so hostile ones are made the same way."""
    parts = [dump(magic), dump(version), dump({"little_endian": little_endian}), dump(state)]
    parts.append(dump([storage.key for storage in storages] if keys is None else keys))
    for storage in storages:
        parts.append(struct.pack("<q", storage.array.size) + storage.array.tobytes())
    return b"".join(parts)


def read(tmp_path, data):
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    return read_state_dict(path)


def test_tensors_come_back_with_their_layout(tmp_path):
    weights = _Storage("1", np.arange(12, dtype="<f4"))
    count = _Storage("2", np.array([7], "<i8"), kind="LongStorage")
    state = {
        "plain": tensor(weights, (3, 4), (4, 1)),
        "transposed": tensor(weights, (4, 3), (1, 4)),
        "part": tensor(weights, (2,), (4,), offset=5),
        "scalar": tensor(count, (), ()),
    }
    found = read(tmp_path, checkpoint(state, [weights, count]))
    whole = np.arange(12, dtype="float32").reshape(3, 4)
    np.testing.assert_array_equal(found["plain"], whole)
    np.testing.assert_array_equal(found["transposed"], whole.T)
    np.testing.assert_array_equal(found["part"], [5, 9])
    assert found["scalar"] == 7 and found["scalar"].shape == () and found["scalar"].dtype == np.int64
    assert list(found) == list(state)
    found["plain"][:] = 0  # own copies: nothing shared with the other views of the storage
    assert found["part"].tolist() == [5, 9]


def test_a_state_dictionary_with_metadata_as_torch_writes_it(tmp_path):
    storage = _Storage("1", np.ones(2, "<f4"))
    state = _Call(ORDERED_DICT, (), state={"_metadata": {"": {"version": 1}}})
    # BUILD, then one item by hand
    data = dump(state)[:-1] + dump("a")[2:-1] + dump(tensor(storage, (2,), (1,)))[2:-1] + pickle.SETITEM + pickle.STOP
    parts = checkpoint(None, [storage]).replace(dump(None), data, 1)
    assert read(tmp_path, parts)["a"].tolist() == [1, 1]


def test_the_published_efficientnet_lite0():
    state = read_state_dict(weights_path())
    assert len(state) == 49 + 49 * 5 + 2  # convolutions, batch normalizations, the top
    floats = {name: array for name, array in state.items() if array.dtype == np.float32}
    assert sum(array.size for name, array in floats.items() if "running" not in name) == 4_652_008  # as published
    assert all(np.isfinite(array).all() for array in floats.values())
    assert min(array.min() for name, array in floats.items() if name.endswith("running_var")) >= 0


# --- hostile pickles ----------------------------------------------------------------------------------------------

_RAN = []


def _innocent_looking(*_arguments):
    _RAN.append(1)
    return collections.OrderedDict()


HOSTILE_CALLS = {
    "system": _Call(_Global("os", "system"), ("touch {marker}",)),
    "posix": _Call(_Global("posix", "system"), ("touch {marker}",)),
    "eval": _Call(_Global("builtins", "eval"), ("open({marker!r}, 'w')",)),
    "python 2's eval": _Call(_Global("__builtin__", "eval"), ("open({marker!r}, 'w')",)),
    "getattr": _Call(_Global("builtins", "getattr"), (ORDERED_DICT, "mro")),
    "attribute of an allowed name": _Call(_Global("collections", "OrderedDict.fromkeys"), ([1],)),
    "through the module": _Call(_Global("collections", "_sys.exit"), (3,)),
    "this test's own function": _Call(_Global(__name__, "_innocent_looking"), ()),
    "another of torch": _Call(_Global("torch", "load"), ("other.pth",)),
    "another of torch._utils": _Call(_Global("torch._utils", "_import_dotted_name"), ("os.system",)),
    "numpy": _Call(_Global("numpy", "load"), ("other.npy",)),
}


@pytest.mark.parametrize("place", ["state", "value", "machine", "keys", "magic"])
@pytest.mark.parametrize("name", HOSTILE_CALLS)
def test_code_in_any_of_the_pickles_is_refused_and_not_run(tmp_path, name, place):
    marker = str(tmp_path / "ran")
    call = HOSTILE_CALLS[name]
    arguments = tuple(item.format(marker=marker) if isinstance(item, str) else item for item in call.arguments)
    call = _Call(call.function, arguments)
    data = {
        "state": lambda: checkpoint(call),
        "value": lambda: checkpoint({"weight": call}),
        "machine": lambda: checkpoint({}, little_endian=call),
        "keys": lambda: checkpoint({}, keys=[call]),
        "magic": lambda: checkpoint({}, magic=call),
    }[place]()
    with pytest.raises(UnsafeCheckpoint, match=r"weights\.pth is refused: it asks for .*trust$"):
        read(tmp_path, data)
    assert not os.path.exists(marker) and not _RAN  # noqa: PTH110


def test_the_hostile_pickles_would_run_without_the_reader(tmp_path):
    """Or the test above could not fail."""
    marker = str(tmp_path / "ran")
    call = _Call(HOSTILE_CALLS["system"].function, (f"touch {marker}",))
    pickle.loads(dump(call))
    assert os.path.exists(marker)  # noqa: PTH110


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00idtR.",  # a name
        b"\x80\x02(X\x02\x00\x00\x00idios\nsystem\n.",  # INST
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.",  # STACK_GLOBAL
        b"\x80\x02\x82\x01.",  # EXT1: the extension registry
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",  # NEWOBJ
        b"\x80\x02(ccollections\nOrderedDict\no.",  # OBJ
        b"Pstorage\n.",  # PERSID, in text
        b"\x80\x05\x97.",  # NEXT_BUFFER
        b"\x80\x02I99999999999999999999\n.",
        b"\x80\x02L" + b"9" * 4000 + b"L\n.",  # a long decimal number: quadratic time
        b"\x80\x02X\x02\x00\x00\x00idr\xff\xff\xff\xff.",  # LONG_BINPUT: 64 GB of memo
        b"\x80\x02]2a" * 2 + b".",  # DUP: a list that holds itself
    ],
)
def test_operations_that_no_state_dictionary_needs_are_refused(tmp_path, data):
    with pytest.raises(UnsafeCheckpoint, match="refused"):
        read(tmp_path, dump(MAGIC_NUMBER) + dump(PROTOCOL_VERSION) + dump({"little_endian": True}) + data)


@pytest.mark.parametrize(
    "target",
    [REBUILD, ORDERED_DICT, _Global("torch", "FloatStorage")],
    ids=["function", "dictionary", "storage type"],
)
@pytest.mark.parametrize("state", [{"__call__": 1}, ({}, {"__call__": 1}), (None, {"dtype": 1})])
def test_what_it_is_read_with_cannot_be_altered(tmp_path, target, state):
    data = dump(target)[:-1] + dump(state)[2:-1] + pickle.BUILD + pickle.STOP
    prefix = dump(MAGIC_NUMBER) + dump(PROTOCOL_VERSION) + dump({"little_endian": True})
    with pytest.raises(UnsafeCheckpoint, match="alter"):
        read(tmp_path, prefix + data)


# --- damage and absurd sizes -------------------------------------------------------------------------------------


def small():
    storages = [_Storage("1", np.arange(6, dtype="<f4")), _Storage("2", np.arange(3, dtype="<i8"), kind="LongStorage")]
    state = {"a": tensor(storages[0], (2, 3), (3, 1)), "b": tensor(storages[1], (3,), (1,))}
    return checkpoint(state, storages)


def test_every_truncation_is_named(tmp_path):
    data = small()
    assert set(read(tmp_path, data)) == {"a", "b"}
    for length in range(len(data)):
        with pytest.raises(
            ValueError, match=r"weights\.pth is not a whole legacy PyTorch checkpoint .*fetch it again$"
        ):
            read(tmp_path, data[:length])


@given(st.data())
def test_no_damage_gives_anything_but_tensors_or_a_sentence(tmp_path_factory, data):
    content = bytearray(small())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read(tmp_path_factory.mktemp("damaged"), bytes(content))
    except ValueError as error:
        assert "weights.pth" in str(error)
    else:
        assert all(isinstance(array, np.ndarray) and array.size <= 6 for array in found.values())


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((10, 10), (0, 0), 0),  # a stride of 0 makes much out of one number
        ((10**6, 10**6), (0, 0), 0),  # a terabyte
        ((7,), (1,), 0),
        ((2, 3), (3, 2), 0),
        ((3,), (1,), 4),
        ((3,), (-1,), 2),
        ((-1,), (1,), 0),
        ((2,), (1, 1), 0),
        ((True,), (1,), 0),
        ((0, 2**62), (1, 1), 2**40),
        ((1.5,), (1,), 0),
        ([2], [1], 0),
    ],
)
def test_tensors_stay_inside_their_storage(tmp_path, shape, strides, offset):
    storage = _Storage("1", np.arange(6, dtype="<f4"))
    with pytest.raises(ValueError, match=r"weights\.pth .*\(a tensor"):
        read(tmp_path, checkpoint({"a": tensor(storage, shape, strides, offset)}, [storage]))


def test_sizes_that_disagree_are_refused(tmp_path):
    storage, liar = _Storage("1", np.zeros(6, "<f4")), _Storage("1", np.zeros(6, "<f4"), count=2**40)
    for state, storages, keys, word in [
        ({"a": tensor(liar, (6,), (1,))}, [liar], None, "claims"),
        ({"a": tensor(storage, (6,), (1,))}, [_Storage("1", np.zeros(5, "<f4"))], None, "5 elements"),
        ({"a": tensor(storage, (6,), (1,))}, [storage], ["1", "1"], "list of storages"),
        ({"a": tensor(storage, (6,), (1,))}, [storage], [1], "list of storages"),
        ({"a": tensor(storage, (6,), (1,))}, [storage], [], "list of storages"),
        ({"a": 3}, [], None, "not a tensor"),
        ({3: tensor(storage, (6,), (1,))}, [storage], None, "dictionary of tensors"),
        ([], [], None, "dictionary of tensors"),
    ]:
        with pytest.raises(ValueError, match=word):
            read(tmp_path, checkpoint(state, storages, keys=keys))


@pytest.mark.parametrize(
    ("options", "word"),
    [({"magic": 1}, "magic"), ({"version": 1002}, "protocol"), ({"little_endian": False}, "little-endian")],
)
def test_another_format_is_named(tmp_path, options, word):
    with pytest.raises(ValueError, match=word):
        read(tmp_path, checkpoint({}, **options))


def test_other_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="zip format"):
        read(tmp_path, b"PK\x03\x04" + bytes(100))
    with pytest.raises(ValueError, match="bytes follow"):
        read(tmp_path, small() + b"x")
    with pytest.raises(FileNotFoundError, match=r"none\.pth is not there"):
        read_state_dict(tmp_path / "none.pth")
    monkeypatch.setattr(torch_weights, "MAX_FILE_BYTES", 10)
    with pytest.raises(ValueError, match=r"a checkpoint here has at most 10$"):
        read(tmp_path, small())
