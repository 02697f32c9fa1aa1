"""What a .tflite says of itself: the class names and the scaling of pixels in TensorFlow Lite metadata.

Most published classifiers carry them: a flatbuffer among the model's buffers, and the names as a zip behind the model.
Source of the format: tensorflow/tflite-support, metadata_schema.fbs, and schema.fbs; the numbers are their fields.
"""

import contextlib
import io
import struct
import zipfile

import numpy as np
from flatbuffers.number_types import Uint8Flags, Uint32Flags
from flatbuffers.table import Table

_NORMALIZATION, _AXIS_LABELS = 1, 2
_MOST = 2**20  # bytes of labels: a zip can claim any size


def read(content, name="the model"):
    """Dict of "labels" (names in the order of the output) and "input_range", as far as the metadata say them.

    Raises:
        ValueError: metadata that are damaged, or that scale the channels differently.
    """
    found = {}
    try:
        model = _root(content)
        for entry in _tables(model, 6):
            if _text(entry, 0) != "TFLITE_METADATA":
                continue
            graph = _tables(_root(_values(_tables(model, 4)[_number(entry, 1, Uint32Flags)], 0, "u1").tobytes()), 3)[0]
            for unit in [unit for tensor in _tables(graph, 2)[:1] for unit in _tables(tensor, 4)]:
                if _number(unit, 0, Uint8Flags) == _NORMALIZATION:
                    options = Table(unit.Bytes, unit.Indirect(unit.Pos + unit.Offset(6)))
                    found["input_range"] = _range(_values(options, 0, "<f4"), _values(options, 1, "<f4"))
            for file in [file for tensor in _tables(graph, 3)[:1] for file in _tables(tensor, 6)]:
                if _number(file, 2, Uint8Flags) == _AXIS_LABELS and "labels" not in found:
                    with contextlib.suppress(zipfile.BadZipFile, KeyError):  # a rewritten file has lost them
                        with zipfile.ZipFile(io.BytesIO(content)).open(_text(file, 0)) as packed:
                            text = packed.read(_MOST + 1)
                        if len(text) > _MOST:
                            raise ValueError(f"more than {_MOST:,} bytes of labels")
                        found["labels"] = text.decode().rstrip("\r\n").splitlines()
    except (struct.error, LookupError, ValueError, TypeError) as error:
        raise ValueError(f"{name} has metadata that cannot be read ({error}); pass labels and input_range") from error
    return found


def _range(mean, deviation):
    """Where (pixel - mean) / deviation takes 0..255."""
    ends = {((0 - float(m)) / float(s), (255 - float(m)) / float(s)) for m, s in np.broadcast(mean, deviation)}
    if len(ends) != 1:
        raise ValueError(f"its channels have different scales, mean {mean.tolist()} and std {deviation.tolist()}")
    return ends.pop()


def _root(data):
    return Table(data, Table(data, 0).Indirect(0))


def _tables(table, field):
    offset = table.Offset(4 + 2 * field)
    places = range(table.VectorLen(offset)) if offset else ()
    return [Table(table.Bytes, table.Indirect(table.Vector(offset) + 4 * at)) for at in places]


def _values(table, field, dtype):
    offset = table.Offset(4 + 2 * field)
    return np.frombuffer(table.Bytes, dtype, table.VectorLen(offset), table.Vector(offset)) if offset else np.empty(0)


def _number(table, field, flags):
    offset = table.Offset(4 + 2 * field)
    return table.Get(flags, table.Pos + offset) if offset else 0


def _text(table, field):
    offset = table.Offset(4 + 2 * field)
    return table.String(table.Pos + offset).decode() if offset else ""
