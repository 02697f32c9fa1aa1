"""The walk through a model that puts a Field on every tensor; utils.receptive_field turns Fields into answers."""

import difflib
import warnings

import keras

from ..layer_calls import layer_calls
from . import rules as _rules
from .algebra import Axis, Field, join


class Walk:
    """One pass through a model: the field of every tensor."""

    def __init__(self, model, input_size, input_name, rules, unsupported):
        if unsupported not in ("warn", "ignore", "raise"):
            raise ValueError(f"unsupported={unsupported!r} is not known; use 'warn', 'ignore' or 'raise'")
        closed = (keras.layers.TimeDistributed, keras.layers.Bidirectional, keras.layers.SpectralNormalization)
        closed += tuple(key for key in rules or () if isinstance(key, type))
        self.model, self.rules, self.policy = model, rules, unsupported
        self.shapes, self.resized = self._input_shapes(input_size), input_size is not None
        self.calls = layer_calls(model, self.shapes if self.resized else None, closed=closed)
        self.fields, self.unknown = {}, {}
        self._start(input_name)
        for call in self.calls:
            if call.outputs[0] not in self.fields:
                self._visit(call)

    def _input_shapes(self, input_size):
        if input_size is None:
            return None
        size = (input_size, input_size) if not isinstance(input_size, list | tuple) else tuple(input_size)
        shapes = [tuple(reference.shape) for reference in getattr(self.model, "inputs", None) or ()]
        if not shapes:
            return (*size, 3)  # a model that is not built yet: RGB
        first = _channels_first(layer for layer in getattr(self.model, "layers", ()))
        resized = []
        for shape in shapes:
            if len(shape) == len(size) + 2:
                shape = (*shape[:2], *size) if first else (shape[0], *size, shape[-1])
            resized.append(tuple(shape))
        return resized if len(resized) > 1 else resized[0]

    def _start(self, input_name):
        sources = [call for call in self.calls if not call.inputs and call.type == "InputLayer"]
        images = [call for call in sources if len(call.output_shapes[0]) >= 3]
        names = [call.path for call in images]
        if not images:
            raise ValueError(
                f"{self.model.name!r} has no input with a spatial axis; receptive fields need (batch, y, x, channels)"
            )
        if input_name is not None:
            if input_name not in names:
                raise ValueError(f"{self.model.name!r} has no image input {input_name!r}; its image inputs are {names}")
            images = [call for call in images if call.path == input_name]
        channels_first = _channels_first(call.layer for call in self.calls)
        shape = images[0].output_shapes[0]
        if any(call.output_shapes[0][1:] != shape[1:] for call in images):
            raise ValueError(
                f"{self.model.name!r} has image inputs of different sizes; choose one with input=, out of {names}"
            )
        positions = range(2, len(shape)) if channels_first else range(1, len(shape) - 1)
        self.rank, self.input_size = len(positions), tuple(shape[position] for position in positions)
        if self.rank > 3:
            raise ValueError(f"{self.model.name!r} has {self.rank} spatial axes; receptive fields are for one to three")
        field = Field(tuple(Axis(position=position, length=shape[position]) for position in positions))
        chosen = {call.index for call in images}
        for call in sources:
            for key in call.outputs:
                self.fields[key] = field if call.index in chosen else None

    def _visit(self, call):
        fields = tuple(self.fields.get(key) for key in call.inputs)
        seen = [path for key in call.inputs for path in self.unknown.get(key, ())]
        if all(field is None for field in fields):
            answers = [None] * len(call.outputs)
        elif call.opened:
            answers = [
                fields[at] if at < len(fields) else _rules.mix_all(call, fields) for at in range(len(call.outputs))
            ]
        else:
            answer = self._apply(call, fields, seen)
            answers = [_fitted(answer, call.output_shapes[0], shape) for shape in call.output_shapes]
        seen = tuple(dict.fromkeys(seen))
        for key, answer in zip(call.outputs, answers, strict=True):
            self.fields[key] = answer
            if seen:
                self.unknown[key] = seen

    def _apply(self, call, fields, seen):
        rule = None if call.problem else _rules.lookup(call.layer, self.rules)
        answer = None
        if rule is not None and (fields[0] is not None or rule in _rules.TAKES_NONE):
            answer = rule(call, fields)
        if answer is not None:
            return answer
        seen.append(call.path)
        reason = f": {call.problem}" if call.problem else ""
        message = (
            f"no receptive-field rule for layer {call.path!r} ({call.type}{reason}); pass one in rules={{class: rule}}"
        )
        if self.policy == "raise":
            raise ValueError(message)
        keeps = all(
            _same_grid(field, shape, call.output_shapes[0])
            for field, shape in zip(fields, call.input_shapes, strict=True)
        )
        if self.policy == "warn":
            taken = "taken as element-wise" if keeps else "taken as seeing the whole image"
            warnings.warn(f"{message}; {taken}", stacklevel=5)
        if keeps:
            return join(
                [field for field in fields if field is not None], call.path, dict(enumerate(call.output_shapes[0]))
            )
        return _rules.mix_all(call, fields)

    def find(self, layer):
        """The call that `layer` names; of a layer object, its first."""
        if layer is None:
            read = {key for call in self.calls for key in call.inputs}
            ends = [call for call in self.calls if not read.intersection(call.outputs)]
            if len(ends) == 1:
                return ends[0]
            raise ValueError(
                f"{self.model.name!r} has {len(ends)} outputs ({', '.join(repr(call.path) for call in ends)}); "
                "name one with layer="
            )
        if not isinstance(layer, str):
            found = [call for call in self.calls if call.layer is layer]
            name = getattr(layer, "name", layer)
        else:
            name = layer
            found = [call for call in self.calls if call.path == layer]
            if not found:
                found = [call for call in self.calls if call.path.endswith("/" + layer)]
                if len(found) > 1:
                    paths = ", ".join(repr(call.path) for call in found)
                    raise ValueError(
                        f"{self.model.name!r} has several layers {layer!r}: {paths}; give one of these paths"
                    )
            if not found:  # a nested model by its name: its last call is its output
                found = [call for call in self.calls if call.path.startswith(layer + "/")][-1:]
            if not found and "/" in layer:  # "conv1/conv" of Keras 2 is "conv1_conv" in Keras 3
                found = [call for call in self.calls if call.path == layer.replace("/", "_")]
        if not found:
            near = difflib.get_close_matches(str(name), [call.path for call in self.calls], 3, 0.4)
            hint = f"; near it are {', '.join(map(repr, near))}" if near else ""
            raise ValueError(f"{self.model.name!r} has no layer {name!r}{hint}")
        return found[0]


def _channels_first(layers):
    formats = (getattr(layer, "data_format", None) for layer in layers)
    return next((one for one in formats if one), keras.config.image_data_format()) == "channels_first"


def _same_grid(field, shape, out_shape):
    """Whether the axes of the image stand where they stood, with the lengths that they had."""
    if field is None:
        return True
    positions = [axis.position for axis in field.axes if axis.position is not None]
    return len(shape) == len(out_shape) and all(shape[at] == out_shape[at] for at in positions)


def _fitted(field, first_shape, shape):
    """The field of a further output: the same where its rank is the same, else the whole image."""
    if field is None or len(shape) == len(first_shape):
        return field
    return field.with_axes(Axis.mixed)
