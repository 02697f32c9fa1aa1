"""The walk through a model that puts a Field on every tensor; utils.receptive_field turns Fields into answers."""

import contextlib
import copy
import difflib
import functools
import types
import warnings

import keras

from ..layer_calls import keras_graph, layer_calls
from . import rules as _rules
from .algebra import Axis, Field
from .index_maps import permute
from .lines import Line
from .windows import channel_axis, data_format


class Walk:
    """One pass through a model: the field of every tensor."""

    def __init__(self, model, input_size, input_name, rules, unsupported, shape=None):
        if unsupported not in ("warn", "ignore", "raise"):
            raise ValueError(f"unsupported must be 'warn', 'ignore' or 'raise', got {unsupported!r}")
        if not (rules is None or (isinstance(rules, dict) and all(map(callable, rules.values())))):
            raise ValueError(f"rules must be a dict {{layer class or its name: function}}, got {rules!r}")
        self.closed = (keras.layers.TimeDistributed, keras.layers.Bidirectional, keras.layers.SpectralNormalization)
        self.closed += tuple(key for key in rules or () if isinstance(key, type))
        self.guessed = shape is None and input_size is not None and not getattr(model, "built", True)
        self.model, self.rules, self.policy = _copied(model) if self.guessed else model, rules, unsupported
        self.copies = dict(zip(map(id, keras_graph.parts(model)), keras_graph.parts(self.model), strict=False))
        self.batch = next((one.shape[0] for one in getattr(model, "inputs", None) or ()), None)
        self.asked = input_size.tolist() if hasattr(input_size, "tolist") else input_size  # of NumPy
        self.calls, self.refused = None, False
        self.shapes = self._input_shapes() if shape is None else shape
        self.calls = self._listed()
        self.fields, self.unknown, self.summaries = {}, {}, {}
        self._start(input_name)
        self._visit_all()
        self.used = {key for call in self.calls for key in call.inputs} | set(self.calls.outputs)

    def _listed(self):
        """The calls with a batch of one, as a reshape into the batch and a `call` that computes with it need one."""
        try:
            return layer_calls(self.model, self.shapes, batch_size=1, closed=self.closed)
        except ValueError as error:
            with contextlib.suppress(ValueError):
                if self.shapes is None:
                    self.refused = True
                    return layer_calls(self.model, closed=self.closed)
                # channels first that are permuted before the first convolution, or last ones
                self.shapes = self._input_shapes(not self._channels_first())
                return layer_calls(self.model, self.shapes, batch_size=1, closed=self.closed)
            text = str(error).replace("pass input_shape, for example (224, 224, 3)", "pass input_size, for example 224")
            if isinstance(self.asked, list | tuple) and len(set(self.asked)) > 1:
                sides = set(self.model.inputs[0].shape[1:-1]) if getattr(self.model, "inputs", None) else ()
                if len(sides) == 1 and None not in sides:
                    text = text.split("; pass an input_shape")[0]
                    text += f"; {self.model.name!r} was built for a square image: pass a square input_size"
            if self.guessed:
                text += "; input_size stands for RGB images, so build the model for its own shape first"
            raise ValueError(text.replace("pass an input_shape", "pass an input_size")) from None

    def _input_shapes(self, first=None):
        input_size = self.asked
        if input_size is None:
            return None
        given = tuple(input_size) if isinstance(input_size, list | tuple) else None
        if any(isinstance(side, bool) or not hasattr(side, "__index__") or side < 1 for side in given or (input_size,)):
            raise ValueError(f"input_size must be a positive integer or one for each axis, (y, x), got {input_size!r}")
        shapes = [tuple(reference.shape) for reference in getattr(self.model, "inputs", None) or ()]
        if not shapes:
            specs = [part.input_spec for part in keras_graph.parts(self.model)]
            ranks = [spec.ndim or spec.min_ndim or 0 for spec in specs if isinstance(spec, keras.layers.InputSpec)]
            rank = next((rank - 2 for rank in ranks if rank > 2), 2)
            shapes = [(None, *(given or (input_size,) * rank), 3)]  # not built yet: RGB
            with contextlib.suppress(ValueError):
                calls = [] if self.guessed else layer_calls(self.model, batch_size=1)
                built = [call.output_shapes[0] for call in calls if call.type == "InputLayer"]
                shapes = [(None, *shape[1:]) for shape in built] or shapes
        first = self._channels_first() if first is None else first
        resized = []
        for shape in shapes:
            rank = len(shape) - 2
            if rank >= 1:
                size = given or (input_size,) * rank
                if len(size) == rank + 1 and all(a in (None, b) for a, b in zip(shape[1:], size, strict=True)):
                    shape = (shape[0], *size)  # with the channels, or of a grey image that has no axis for them
                elif len(size) != rank and len(shapes) == 1:
                    raise ValueError(
                        f"input_size must have {rank} entries for {self.model.name!r}, whose input is {shape}, "
                        f"got {input_size!r}"
                    )
                if len(size) == rank:
                    shape = (*shape[:2], *size) if first else (shape[0], *size, shape[-1])
            resized.append(tuple(shape))
        return resized if len(resized) > 1 else resized[0]

    def _channels_first(self):
        layers = getattr(self.model, "layers", ()) if self.calls is None else [call.layer for call in self.calls]
        formats = map(data_format, layers)
        return next((one for one in formats if one), keras.config.image_data_format()) == "channels_first"

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
        shape = images[0].output_shapes[0]
        self.channels = self._channel_axis(images[0])
        positions = [position for position in range(1, len(shape)) if position != self.channels]
        sizes = {
            tuple(call.output_shapes[0][at] for at in positions if at < len(call.output_shapes[0])) for call in images
        }
        if len(sizes) > 1:
            raise ValueError(
                f"{self.model.name!r} has image inputs of different sizes; choose one with input=, out of {names}"
            )
        self.rank, self.input_size = len(positions), tuple(shape[position] for position in positions)
        if self.rank > 3:
            raise ValueError(f"{self.model.name!r} has {self.rank} spatial axes; receptive fields are for one to three")
        field = self.image = Field(tuple(Axis((((position, Line()),),)) for position in positions))
        chosen = {call.index for call in images}
        for call in sources:
            for key in call.outputs:
                self.fields[key] = field if call.index in chosen else None

    def _channel_axis(self, image):
        """The channel axis of the input: where that of the first layer with a data format comes from, if anywhere."""
        rank, first = len(image.output_shapes[0]), self._channels_first()
        key, order = image.outputs[0], list(range(rank))
        for call in self.calls:
            if key not in call.inputs:
                continue
            rule = _rules.lookup(call.layer)
            if rule is permute:
                moved = permute(call, (Field((Axis(tuple(((at, Line()),) for at in range(len(order)))),)),))
                found = [branch[0][0] for branch in moved.axes[0].branches]
                order = [order[found.index(at)] for at in range(len(order))]
            elif data_format(call.layer) and len(call.input_shapes[0]) == len(order):
                return order[channel_axis(call.layer, len(order))]
            elif len(call.output_shapes[0]) != len(order):
                added, grown = 1 if first else len(order), list(call.output_shapes[0])
                if len(grown) == len(order) + 1 and grown[:added] + grown[added + 1 :] == [*call.input_shapes[0]]:
                    order.insert(added, None)  # a grey image gets its channel
                else:
                    break
            key = call.outputs[0]
        return 1 if first else rank - 1

    def _visit_all(self):
        for call in self.calls:
            if call.outputs[0] not in self.fields:
                self._visit(call)

    def _visit(self, call):
        fields = tuple(self.fields.get(key) for key in call.inputs)
        seen = [path for key in call.inputs for path in self.unknown.get(key, ())] if self.unknown else []
        hidden = _reads_unseen(call)
        if hidden:
            fields = (*fields, self.image)
        if all(field is None for field in fields):
            answers = [None] * len(call.outputs)
        elif call.opened:
            answers = [
                fields[at] if at < len(fields) else _rules.mix_all(call, fields) for at in range(len(call.outputs))
            ]
        else:
            answer = self._apply(call, fields, seen, hidden)
            answers = answer if isinstance(answer, list) else [answer] * len(call.outputs)
            answers = [
                one if len(shape) == len(call.output_shapes[0]) else _rules.mix_all(call, (one,))
                for one, shape in zip(answers, call.output_shapes, strict=True)
            ]
        self.fields.update(zip(call.outputs, answers, strict=True))
        if seen:
            self.unknown.update(dict.fromkeys(call.outputs, tuple(dict.fromkeys(seen))))

    def _apply(self, call, fields, seen, hidden):
        lost = next((field.lost for field in fields if field is not None and field.lost), None)
        if lost is not None:
            return _rules.mix_all(call, [field for field in fields if field is not None and field.lost])
        rule = None if call.problem or hidden else _rules.lookup(call.layer, self.rules)
        answer = None
        # Of Keras' rules only those of several inputs look at a kernel, an index or a scale that the image decides.
        ruled = isinstance(call.layer, keras.Layer) or rule is not _rules.lookup(call.layer)
        alone = ruled or all(field is None for field in fields[1:])
        if rule is not None and ((fields[0] is not None and alone) or rule in _rules.TAKES_NONE):
            try:
                answer = rule(call, fields)
            except Exception:  # arguments that a rule of ours has not met: unknown by name, as without a rule
                if rule is not _rules.lookup(call.layer):
                    raise
        parts = answer if isinstance(answer, list) else [answer]
        if not all(one is None or isinstance(one, Field) for one in parts):
            raise ValueError(
                f"the rule for layer {call.path!r} must return a Field, a list with one for each output, or None, "
                f"got {answer!r}"
            )
        if self.refused and isinstance(answer, Field) and (answer.lost or "").endswith("; pass input_size"):
            answer = answer._replace(lost=answer.lost.removesuffix("; pass input_size") + self._refusal())
        if answer is None and rule is _rules.time_distributed and len(fields) == 1:
            answer = _rules.each_step(call, fields[0], functools.partial(self._inside, call, seen))
        if answer is not None:
            return answer
        seen.append(call.path)
        reason = f": {call.problem.split('. ')[0]}" if call.problem else ""
        lost = f"there is no receptive-field rule for layer {call.path!r} ({call.type}{reason})"
        advice = "pass one in rules={class: rule}"
        if rule is not None and any(None in shape for shape in (*call.input_shapes, *call.output_shapes)):
            lost = f"the receptive-field rule for layer {call.path!r} ({call.type}) needs the sizes of its input"
            advice = "pass input_size"
        if self.policy == "raise":
            raise ValueError(f"{lost}; {advice}")
        if self.policy == "warn":
            warnings.warn(f"{lost}; what comes after it is unknown; {advice}", stacklevel=5)
        return _rules.mix_all(call, fields)._replace(lost=f"{lost}; {advice}")

    def _refusal(self):
        if len(set(self.input_size)) == 1:
            advice = "build it for another size"
        else:
            advice = "if it takes the root of a number of positions for a side, as MiT does, build it for a square"
        return f", as {self.model.name!r} does not run on one image of {self.input_size}; {advice}"

    def _inside(self, outer, seen, inner, field):
        """The field behind a model or a layer of your own that a wrapper calls; None where it cannot be walked."""
        walk = copy.copy(self)
        try:
            calls = layer_calls(inner.layer, inner.input_shapes[0][1:], batch_size=1, closed=self.closed)
        except ValueError:
            return None
        if len(calls.outputs) != 1:
            return None
        walk.calls = [call._replace(path=f"{outer.path}/{call.path}") for call in calls]
        walk.fields, walk.unknown = {key: field for call in calls if not call.inputs for key in call.outputs}, {}
        walk._visit_all()
        seen += walk.unknown.get(calls.outputs[0], ())
        return walk.fields[calls.outputs[0]]

    def find(self, layer, output=None):
        """(call, number of its output) that `layer` and `output` name; of a layer object, its first call."""
        made = {key: (call, at) for call in self.calls for at, key in enumerate(call.outputs)}
        if layer is None:
            return self._returned(output, made)
        layer = self.copies.get(id(layer), layer)
        # What a failed look inside left is no call; a nested model is none of its own, but gives what calls in it give.
        found = self._named(layer, [*self.calls, *(one for one in self.calls.nested if made.keys() >= {*one.outputs})])
        return made[found.outputs[self._output(found, output)]]

    def _returned(self, output, made):
        ends = list(dict.fromkeys(self.calls.outputs))
        if output is None and len(ends) > 1:
            paths = ", ".join(repr(made[key][0].path) for key in ends)
            raise ValueError(
                f"{self.model.name!r} has {len(ends)} outputs ({paths}); name one with layer= or number it with output="
            )
        return made[self.calls.outputs[_checked(output or 0, len(self.calls.outputs), f"in {self.model.name!r}")]]

    def _output(self, call, output):
        count = len(call.outputs)
        if output is not None:
            return _checked(output, count, f"for layer {call.path!r}")
        used = [at for at, key in enumerate(call.outputs) if key in self.used] or [0]
        if any(self.fields[call.outputs[at]] != self.fields[call.outputs[used[0]]] for at in used):
            raise ValueError(
                f"layer {call.path!r} has {count} outputs that see different pixels; choose one with output="
            )
        return used[0]

    def shown(self, call):
        """Number of the output that stands for a call in a table: the first that anything reads."""
        return next((at for at, key in enumerate(call.outputs) if key in self.used), 0)

    def _named(self, layer, calls):
        named = isinstance(layer, str)
        found = [call for call in calls if (call.path == layer if named else call.layer is layer)]
        if named and not found:
            found = [call for call in calls if call.path.endswith("/" + layer)]
            if len(found) > 1:
                paths = ", ".join(repr(call.path) for call in found)
                raise ValueError(f"{self.model.name!r} has several layers {layer!r}: {paths}; name one of these paths")
        if named and not found:  # "conv1/conv" of Keras 2 is "conv1_conv" in Keras 3
            found = [call for call in calls if call.path == layer.replace("/", "_")]
        if not found:
            name = layer if named else getattr(layer, "name", layer)
            near = difflib.get_close_matches(str(name), [call.path for call in calls], 3, 0.4)
            hint = f"; near it are {', '.join(map(repr, near))}" if near else ""
            raise ValueError(f"{self.model.name!r} has no layer {name!r}{hint}")
        return found[0]


def _copied(model):
    """The same model for a shape that is a guess, so that the caller's own is not built for it; else the model itself.

    The configuration that a class inherits lacks what the class adds, and a copy from it would be another model.
    """
    if all(
        (type(part).__module__.startswith("keras.src.") or "get_config" in vars(type(part)))
        and not keras_graph.replaced_call(part)
        for part in keras_graph.parts(model)
    ):
        with contextlib.suppress(Exception):  # a function of one's own cannot be made again from its name
            if isinstance(model, keras.Sequential):
                return keras.models.clone_model(model, recursive=True)
            return type(model).from_config(model.get_config())
    return model


def _checked(output, count, where):
    if not hasattr(output, "__index__") or not 0 <= output < count:
        raise ValueError(f"output must be a whole number from 0 to {count - 1} {where}, got {output!r}")
    return output


def _reads_unseen(call):
    """Whether an operation of Keras may read more than its inputs: branches and loop bodies, tensors as settings."""
    if isinstance(call.layer, keras.Layer) or not type(call.layer).__module__.startswith("keras."):
        return False
    options = (*call.call_args, *call.call_kwargs.values(), *vars(call.layer).values())
    return any(isinstance(one, types.FunctionType | functools.partial) for one in options) or any(
        isinstance(leaf, keras.KerasTensor) for one in vars(call.layer).values() for leaf in keras.tree.flatten(one)
    )
