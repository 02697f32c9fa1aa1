"""The walk through a model: every layer call in execution order, with full shapes and the data flow between them.

- Functional and Sequential models are walked as the graphs that they are, through any depth of nesting.
- `TimeDistributed`, `Bidirectional` and `SpectralNormalization` are opened: the calls inside come first, then a
  closing call of the wrapper itself (`opened=True`), which joins what they return.
- A layer or model of your own (anything whose `call` is not Keras' own) is run once on symbolic input, which computes
  and changes nothing, and what it calls is listed in the same way; operations of `keras.ops` are calls too.
- One that cannot be run so (it calls TensorFlow or JAX directly, say) is listed with the reason in `problem`. With
  `graphs=True` the backend traces it instead: the layers that it calls are listed, the rest is in `operations`.
"""

import contextlib
import inspect
import itertools
import re
import types
from typing import Any, NamedTuple

import keras
from keras import tree

from . import backend_graph
from . import keras_graph as internals
from .arguments import described, fresh, holds_tensor, in_graph_order, known_outputs, operands, replaced
from .shapes import build_sequential, call_shapes, first_line, input_shapes


class LayerCall(NamedTuple):
    """One call of one layer (or of one `keras.ops` operation).

    Attributes:
        index: position in execution order, from 0.
        path: the layer's name behind the names of the models and layers that hold it, "backbone/block1/conv"; the name
            of the outermost model is left out. The second call of a shared layer is "dense:1", the third "dense:2".
        layer: the `keras.Layer`, or the `keras.Operation` behind a `keras.ops` call.
        type: its class name.
        input_shapes: full shapes of the tensors it reads, batch first, None where a dimension is unknown.
        output_shapes: full shapes of the tensors it gives.
        inputs: int keys of the tensors it reads: the `outputs` of earlier calls. What the model is given are the
            outputs of its `InputLayer` calls.
        outputs: int keys of the tensors it gives.
        call_args: positional arguments of the call as they were recorded: symbolic tensors, arrays, slices.
        call_kwargs: keyword arguments of the call that are not tensors.
        operand_shapes: shapes of all tensors that the arithmetic reads, in the order of the call's signature: the
            inputs without masks, and for operations also weights and constants.
        output_dtypes: dtype names, one for each output.
        opened: True for the closing call of a wrapper or of a layer of your own whose inner calls are listed before it:
            it reads what they gave and hands it on (`Bidirectional` also merges).
        problem: why the inside of this layer could not be listed, or None.
        operations: what the call computes outside of the calls listed before it, as operations of the backend
            (`tf.Operation`, or equations of a jaxpr); None where nobody looked.
    """

    index: int
    path: str
    layer: Any
    type: str
    input_shapes: tuple
    output_shapes: tuple
    inputs: tuple
    outputs: tuple
    operand_shapes: tuple
    call_args: tuple = ()
    call_kwargs: Any = types.MappingProxyType({})
    output_dtypes: tuple = ()
    opened: bool = False
    problem: str | None = None
    operations: tuple | None = None

    def __repr__(self):
        given, gives = (" + ".join(map(str, shapes)) for shapes in (self.input_shapes, self.output_shapes))
        return f"{self.index}: {self.path} ({self.type}) {f'{given} -> ' if given else ''}{gives}"


class Nested(NamedTuple):
    """One call of a model whose graph is walked: the calls inside it are listed, and its `outputs` are among theirs."""

    path: str
    layer: Any
    outputs: tuple


class Calls(list):
    """The calls of a model in execution order.

    `outputs` are the keys of the tensors that the model returns, `nested` the calls of the models inside it.
    """

    outputs = nested = ()


@internals.raw_errors()
def layer_calls(model, input_shape=None, *, batch_size=None, closed=(), opened=None, graphs=False):
    """List every layer call of a model in execution order.

    Args:
        model: a built or unbuilt Keras 3 model (Functional, Sequential, nested, subclassed), or a single layer. An
            unbuilt one is built, as its first call would build it.
        input_shape: (224, 224, 3), or with the batch (None, 224, 224, 3); a list of such shapes, or a dict by input
            name (or name of the argument of `call`), for several inputs. None: the shapes that the model was built
            with. It may differ from them where the layers allow it. For a model that is not built and subclassed, a
            first None marks the batch.
        batch_size: int that stands in for the batch, unless `input_shape` fixes another; None leaves it as it is.
        closed: layer types that are not to be opened (because the caller knows what they cost, say).
        opened: function of a layer or operation of Keras: whether to look inside it all the same.
        graphs: whether to let the backend trace what cannot be run on symbolic input.

    Returns:
        list of :class:`LayerCall`, which also has `outputs`: the keys of the tensors that the model returns.

    Raises:
        TypeError: `model` is not a Keras 3 model.
        ValueError: a shape does not fit the model (names the layer), an input shape is needed and was not given, or a
            subclassed model's `call` can be run in neither way.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="conv")])
        >>> layer_calls(model)[1]
        1: conv (Conv2D) (None, 8, 8, 3) -> (None, 6, 6, 4)
        >>> layer_calls(model, (32, 32, 3), batch_size=2)[1].output_shapes
        ((2, 30, 30, 4),)
    """
    internals.check_model(model)
    if isinstance(model, keras.Sequential):
        if not model.layers:
            raise ValueError(f"{model.name!r} has no layers; add some before you walk it")
        if not model.built and input_shape is not None:
            build_sequential(model, input_shape)
    graph = None if internals.replaced_call(model) else internals.graph_of(model)
    if graph is not None:
        walk = _Walk(tuple(closed), opened, graphs)
        walk.root_graph(graph, input_shapes(model, graph.inputs, input_shape, batch_size))
        return walk.calls
    shapes, refused = call_shapes(model, input_shape, batch_size), None
    for dtype in ("float32", "int32", "string"):  # nothing says which its call takes; tokens are whole numbers or text
        walk = _Walk(tuple(closed), opened, graphs)
        try:
            walk.root_layer(model, shapes, dtype)
            return walk.calls
        except ValueError as error:
            refused = refused or error
    raise refused


class _Tensor(NamedTuple):
    """A tensor of the walk, and its key in the data flow."""

    shape: tuple
    dtype: str
    key: int


class _Walk:
    """One pass through a model; `calls` grows as layers are met."""

    def __init__(self, closed, opened=None, graphs=False):
        self.closed, self.opened, self.graphs = closed, opened or (lambda layer: False), graphs
        self.calls = Calls()
        self.times_seen = {}
        self.steps = 1  # how often Keras calls what is walked once, with all time steps in the batch
        self.keys = itertools.count()

    # --- whole models -------------------------------------------------------------------------------------------------

    def root_graph(self, graph, shapes):
        given = []
        for reference, shape in zip(graph.inputs, shapes, strict=True):
            tensor = self._new(shape, reference.dtype)
            layer = internals.maker(reference) or keras.layers.InputLayer(batch_shape=shape, dtype=reference.dtype)
            self._record(layer, layer.name, [], [tensor])
            given.append(tensor)
        self.calls.outputs = tuple(tensor.key for tensor in self._graph(graph, given, "") if tensor)

    def root_layer(self, model, shapes, dtype):
        """A model without a graph, or a bare layer; `shapes` are its (args, kwargs)."""
        args, kwargs = tree.map_structure(lambda leaf: keras.KerasTensor(leaf.shape, dtype), shapes)
        if not internals.all_built(model):
            with internals.no_mark_on(model):
                try:
                    model(*args, **kwargs)
                except Exception as error:
                    raise ValueError(_refusal(model, error)) from error
        references, given = tree.flatten((args, kwargs)), []
        for number, reference in enumerate(references):
            layer = keras.layers.InputLayer(batch_shape=reference.shape, name=f"input_{number}" if number else "input")
            tensor = self._new(reference.shape, reference.dtype)
            self._record(layer, layer.name, [], [tensor])
            given.append(tensor)
        if self._kind(model) not in ("custom", "model"):
            outputs = self._visit(model, args, kwargs, references, given, None, model.name)
            self.calls.outputs = tuple(tensor.key for tensor in outputs)
            return
        start = len(self.calls)
        self._open_custom(model, args, kwargs, references, given, None, model.name, root=True)
        whole = self.calls[-1]
        if whole.problem and whole.operations is None and isinstance(model, keras.Model):
            raise ValueError(_refusal(model, whole.problem))
        self.calls.outputs = whole.outputs
        inner = {id(weight) for call in self.calls[start:-1] for weight in getattr(call.layer, "weights", ())}
        if whole.opened and not whole.operations and all(id(weight) in inner for weight in model.weights):
            self.calls.outputs = self.calls.pop().inputs  # nothing of its own: the calls inside say all

    # --- one graph, one call ------------------------------------------------------------------------------------------

    def _graph(self, graph, given, prefix):
        """Walk a graph on the tensors it is given; returns its output tensors."""
        tensors = dict(zip(map(id, graph.inputs), given, strict=True))
        for node in internals.nodes(graph):
            self._node(node, tensors, prefix + node.operation.name, {"training": False})
        return [tensors[id(reference)] for reference in graph.outputs]

    def _node(self, node, tensors, path, instead=types.MappingProxyType({})):
        """One call of a graph; Keras gives it these arguments `instead` of those that it was recorded with."""
        args, kwargs, references = node.arguments.args, node.arguments.kwargs, node.input_tensors
        kwargs = {name: instead.get(name, value) for name, value in kwargs.items()}
        given = [tensors[id(reference)] for reference in references]
        if None in given:  # a layer announced a tensor, and returns None
            missing = [reference for reference in references if tensors[id(reference)] is None]
            args, kwargs = replaced(args, kwargs, missing, [None] * len(missing))
            references = [reference for reference in references if tensors[id(reference)] is not None]
            given = [tensor for tensor in given if tensor is not None]
        outputs = self._visit(node.operation, args, kwargs, references, given, node.outputs, path)
        if len(outputs) != len(node.outputs):
            outputs = [tensor for tensor in outputs if tensor is not None] + [None] * len(node.outputs)
        for reference, tensor in zip(node.outputs, outputs, strict=False):
            tensors[id(reference)] = tensor

    def _visit(self, layer, args, kwargs, references, given, known, path):
        """One call: `args`, `kwargs` hold the `references`, which stand for `given`; `known` are reference outputs."""
        kind = self._kind(layer)
        if kind == "model" and (graph := internals.graph_of(layer)) is not None:
            inner, scope = in_graph_order(graph, args, kwargs, references, given), self._path(path)
            outputs = self._graph(graph, inner, f"{scope}/")
            self.calls.nested += (Nested(scope, layer, tuple(tensor.key for tensor in outputs if tensor)),)
            return outputs
        if kind == "wrapper":
            return self._open_wrapper(layer, args, kwargs, references, given, known, path)
        if kind in ("custom", "model"):
            return self._open_custom(layer, args, kwargs, references, given, known, path)
        return self._leaf(layer, args, kwargs, references, given, known, path)

    def _kind(self, layer):
        if self.closed and isinstance(layer, self.closed):
            return "layer"
        kind = internals.kind(type(layer))
        if internals.replaced_call(layer) or (kind in ("layer", "operation") and self.opened(layer)):
            return "custom"
        return kind

    def _leaf(self, layer, args, kwargs, references, given, known, path, problem=None):
        outputs = [self._new(*one) for one in self._outputs(layer, args, kwargs, references, given, known, path)]
        plain = {name: value for name, value in kwargs.items() if not holds_tensor(value)}
        if len(args) == 1 and len(plain) == len(kwargs) and isinstance(layer, keras.Layer):
            read = None  # the inputs
        else:
            read = operands(layer, args, kwargs, references, given)
        self._record(
            layer, self._path(path), given, outputs, read, call_args=tuple(args), call_kwargs=plain, problem=problem
        )
        return outputs

    def _outputs(self, layer, args, kwargs, references, given, known, path):
        """[(shape, dtype)] of a call: the known ones where they hold, else what Keras infers from the new shapes."""
        outputs = known_outputs(layer, references, given, known)
        if outputs is None:
            args, kwargs = replaced(args, kwargs, references, fresh(given))
            try:
                internals.check_input(layer, args)
                try:
                    # Keras' own layers keep nothing, and looking after them made a count three times slower
                    yours = any(not internals.keras_own(type(part)) for part in internals.parts(layer))
                    with internals.no_mark_on(layer) if yours else contextlib.nullcontext():
                        outputs = described(layer.compute_output_spec(*args, **kwargs))
                except Exception:
                    if isinstance(layer, keras.Layer):
                        raise
                    outputs = described(keras.Operation.compute_output_spec(layer, *args, **kwargs))  # of the backend
            except Exception as error:
                shapes = " + ".join(str(tensor.shape) for tensor in given)
                raise ValueError(
                    f"layer {path!r} ({type(layer).__name__}) cannot take the shape {shapes}: {first_line(error)}; "
                    "pass an input_shape that fits all layers of the model"
                ) from error
        vague = [shape for shape, _ in outputs if None in shape[1:]]
        if vague and not any(None in tensor.shape[1:] for tensor in given):
            # Some layers (EinsumDense) say less of their output than follows from their input: ask the backend.
            with contextlib.suppress(Exception):
                args, kwargs = replaced(args, kwargs, references, fresh(given))
                outputs = described(keras.Operation.compute_output_spec(layer, *args, **kwargs))
        return outputs

    # --- layers that hold layers --------------------------------------------------------------------------------------

    def _open_wrapper(self, layer, args, kwargs, references, given, known, path):
        mark, seen, steps = len(self.calls), dict(self.times_seen), self.steps
        scope, outer = self._path(path), given[0]
        if isinstance(layer, keras.layers.Bidirectional):
            states = tree.flatten(kwargs.get("initial_state", args[1] if len(args) > 1 else None))
            tensors = dict(zip(map(id, references), given, strict=True))
            states = [tensors[id(state)] for state in states if state is not None]
            half = len(states) // 2
            parts = [(layer.forward_layer, [outer, *states[:half]]), (layer.backward_layer, [outer, *states[half:]])]
        elif isinstance(layer, keras.layers.TimeDistributed):  # every time step is one more row of the batch
            batch, times = outer.shape[:2]
            folded = None if batch is None or times is None else batch * times
            self.steps *= times or 1
            parts = [(layer.layer, [outer._replace(shape=(folded, *outer.shape[2:]))])]
        else:
            parts = [(layer.layer, [outer])]
        outputs = []
        for part, tensors in parts:
            own = fresh(tensors)
            more = {"initial_state": own[1:]} if len(own) > 1 else {}
            outputs += self._visit(part, (own[0],), more, own, tensors, None, f"{scope}/{part.name}")
        self.steps, together = steps, self.steps > steps
        if together and any(call.problem and call.operations for call in self.calls[mark:]):
            self._forget(mark, seen)  # the backend's graph does not tell what each step repeats: look at every step
            return self._open_custom(layer, args, kwargs, references, given, known, path)
        shapes = self._outputs(layer, (references[0],), {}, references[:1], [outer], known, path)
        return self._close(layer, scope, outputs, shapes)

    def _open_custom(self, layer, args, kwargs, references, given, known, path, root=False):
        """Look inside: by a run on symbolic tensors, else by the backend's trace; else list it with the reason."""
        mark, seen = len(self.calls), dict(self.times_seen)
        scope = self._path(path)
        prefix = "" if root else f"{scope}/"
        if isinstance(layer, keras.Layer) or internals.kind(type(layer)) == "custom":
            try:
                outputs, operations = self._trace(layer, args, kwargs, given, prefix, references)
                if not (self.graphs and any(call.problem and call.operations is None for call in self.calls[mark:])):
                    return self._close(layer, scope, outputs, operations=operations * self.steps)
                problem = "a call inside it cannot be looked into"
            except _CannotTrace as error:
                problem = first_line(error.__cause__ or error)
        else:
            problem = "an operation without a rule"
        self._forget(mark, seen)
        if self.graphs:
            try:
                scope = self._path(path)
                return self._trace_graph(layer, args, kwargs, references, given, scope, prefix, problem)
            except _CannotTrace as error:
                self._forget(mark, seen)
                problem = first_line(error.__cause__ or error)
        return self._leaf(layer, args, kwargs, references, given, known, path, problem=problem)

    def _trace(self, layer, args, kwargs, given, prefix, references):
        """Run `layer.call` on symbolic tensors and walk what it called; its outputs, and what it computed beside."""
        sources = fresh(given)
        args, kwargs = replaced(args, kwargs, references, sources)
        if not internals.runs_call(layer):
            raise _CannotTrace() from TypeError(f"{type(layer).__name__} replaces __call__")
        call = layer.quantized_call if getattr(layer, "quantization_mode", None) else layer.call
        parameters = inspect.signature(call).parameters
        if "training" in parameters:
            kwargs = {**kwargs, "training": kwargs.get("training") or False}
        elif not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            kwargs = {name: value for name, value in kwargs.items() if name != "training"}

        def run():
            results = call(*args, **kwargs)
            leaves = tree.flatten(results)
            return leaves, internals.nodes_behind(leaves, sources)

        def read(traced):
            leaves, nodes = traced
            return leaves + tree.flatten([(node.arguments.args, node.arguments.kwargs) for node in nodes])

        with internals.no_mark_on(layer):
            try:
                with internals.symbolic_calls(layer):
                    traced = backend_graph.trace(run, (), read)
                results, nodes = traced.results
            except Exception as error:
                raise _CannotTrace() from error
            tensors = dict(zip(map(id, sources), given, strict=True))
            names = {}
            for node in nodes:
                name = node.operation.name
                if not isinstance(node.operation, keras.Layer):  # Keras numbers operations over the whole session
                    name = _snake(type(node.operation).__name__)
                    names[name] = names.get(name, 0) + 1
                    name += f"_{names[name] - 1}" if names[name] > 1 else ""
                self._node(node, tensors, prefix + name)
            tensors[id(None)] = None
            for result in results:
                if result is not None and not hasattr(result, "shape"):
                    raise _CannotTrace() from TypeError(f"it returns a {type(result).__name__}, not a tensor")
                if id(result) not in tensors:  # a constant, which follows from no input
                    tensors[id(result)] = self._new(result.shape, keras.backend.standardize_dtype(result.dtype))
            return [tensors[id(result)] for result in results], traced.operations

    def _trace_graph(self, layer, args, kwargs, references, given, scope, prefix, problem):
        """Let the backend trace the call; the layers that it calls are walked in their turn."""

        def run(*placeholders):
            inputs, options = replaced(args, kwargs, references, placeholders)
            return layer(*inputs, **options)

        inner = [part for part in internals.parts(layer) if part is not layer]
        with internals.no_mark_on(layer):
            try:
                if any(None in tensor.shape for tensor in given):
                    raise ValueError(f"the shape {given[0].shape} depends on the data")
                traced = backend_graph.trace(run, given, tree.flatten, inner)
                leaves = tree.flatten(tree.map_structure(backend_graph.symbolic, traced.results))
            except Exception as error:
                raise _CannotTrace() from error
            for part, part_args, part_kwargs, part_outputs in traced.calls:
                own = [leaf for leaf in tree.flatten((part_args, part_kwargs)) if isinstance(leaf, keras.KerasTensor)]
                tensors = [self._new(tuple(tensor.shape), tensor.dtype) for tensor in own]
                known = [leaf for leaf in tree.flatten(part_outputs) if isinstance(leaf, keras.KerasTensor)]
                self._visit(part, part_args, part_kwargs, own, tensors, known, prefix + part.name)
        outputs = [
            self._new(tuple(leaf.shape), leaf.dtype) if isinstance(leaf, keras.KerasTensor) else None for leaf in leaves
        ]
        present = [tensor for tensor in outputs if tensor is not None]
        self._record(layer, scope, given, present, problem=problem, operations=traced.operations)
        return outputs

    def _close(self, layer, scope, inner, shapes=None, **more):
        given = [tensor for tensor in inner if tensor is not None]
        if shapes is None:
            outputs = [tensor and self._new(tensor.shape, tensor.dtype) for tensor in inner]
        else:
            outputs = [self._new(*one) for one in shapes]
        self._record(layer, scope, given, [tensor for tensor in outputs if tensor is not None], opened=True, **more)
        return outputs

    # --- records ------------------------------------------------------------------------------------------------------

    def _new(self, shape, dtype):
        return _Tensor(tuple(shape), dtype, next(self.keys))

    def _forget(self, mark, seen):
        """Undo what was walked since there were `mark` calls, and `seen` paths."""
        del self.calls[mark:]
        self.times_seen = dict(seen)

    def _path(self, path):
        """The path of one more call of what is at `path`."""
        times = self.times_seen[path] = self.times_seen.get(path, -1) + 1
        return f"{path}:{times}" if times else path

    def _record(self, layer, path, given, outputs, operand_shapes=None, **more):
        shapes = tuple([tensor.shape for tensor in given])
        self.calls.append(
            LayerCall(
                index=len(self.calls),
                path=path,
                layer=layer,
                type=type(layer).__name__,
                input_shapes=shapes,
                output_shapes=tuple([tensor.shape for tensor in outputs]),
                inputs=tuple([tensor.key for tensor in given]),
                outputs=tuple([tensor.key for tensor in outputs]),
                operand_shapes=shapes if operand_shapes is None else operand_shapes,
                output_dtypes=tuple([tensor.dtype for tensor in outputs]),
                **more,
            )
        )


class _CannotTrace(Exception):
    """A call that does not run on symbolic tensors; the cause says why."""


def _snake(name):
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _refusal(model, error):
    return (
        f"{model.name!r} ({type(model).__name__}) cannot be walked, since its call() does not run on symbolic input: "
        f"{error if isinstance(error, str) else first_line(error)}; write it with Keras layers and keras.ops, or as a "
        "Functional model"
    )
