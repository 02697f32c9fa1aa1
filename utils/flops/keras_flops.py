"""The real keras-flops package, made to run on today's TensorFlow and Keras 3.

keras-flops 0.1.2 does not import since TensorFlow 2.13 (its issues 17 and 19): it registers FLOP statistics for
operations that TensorFlow has since registered itself. And it reads the list shapes of Keras 2. The adapter gives it
both, for the length of one call: the statistics that exist already are kept, those that keras-flops adds are there
while it counts and gone afterwards, and the model is shown to it behind a thin stand-in whose inputs have list shapes.

It is here for comparison. The TensorFlow profiler behind it counts what it has statistics for and silently nothing
else: grouped convolutions at their full input width or not at all, recurrent layers and attention as zero. See
:func:`utils.flops.count` for a count that says what it does not know.
"""

import contextlib
import logging

import keras

from ..environment import quiet
from ..layer_calls import keras_graph as internals

_added = None  # the statistics that keras-flops registers, by name


def keras_flops_total(model, batch_size=1):
    """FLOPs of a model as the keras-flops package counts them.

    Args:
        model: a Functional or Sequential Keras 3 model with known input shapes, on the TensorFlow backend.
        batch_size: number of inputs.

    Returns:
        int: `total_float_ops` of the TensorFlow profiler over the frozen graph, biases and element-wise operations in.

    Raises:
        TypeError: not a Keras 3 model.
        ValueError: the model has no symbolic inputs, an unknown input dimension, or the backend is not TensorFlow.
        ModuleNotFoundError: keras-flops is not installed.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(16)])
        >>> keras_flops_total(model)
        1040
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(f"keras-flops counts TensorFlow graphs; Keras runs on {keras.backend.backend()!r} here")
    internals.check_model(model)
    graph = internals.graph_of(model)
    if graph is None:
        raise ValueError(
            f"{model.name!r} has no symbolic inputs, which keras-flops reads; build it as a Functional model"
        )
    for tensor in graph.inputs:
        if None in tensor.shape[1:]:
            raise ValueError(
                f"input {tensor.name!r} of {model.name!r} has the shape {tensor.shape}, and keras-flops "
                "counts fixed shapes only; build the model for one input size"
            )
    with _package() as get_flops, quiet(), _silent_logger():
        return int(get_flops(_stand_in(graph), batch_size=batch_size))


def _stand_in(graph):
    """A keras.Model that calls `graph` and shows its inputs as Keras 2 did: shapes are lists."""

    class Input:
        def __init__(self, tensor):
            self.shape, self.dtype = list(tensor.shape), tensor.dtype

    class StandIn(keras.Model):
        @property
        def inputs(self):
            return [Input(tensor) for tensor in graph.inputs]

        def call(self, tensors):
            return graph(keras.tree.pack_sequence_as(graph.input, keras.tree.flatten(tensors)), training=False)

    return StandIn(name="stand_in")


@contextlib.contextmanager
def _package():
    """`keras_flops.get_flops`, with its statistics registered inside the block only."""
    global _added
    from tensorflow.python.framework import ops

    registry = ops._stats_registry
    before = dict(registry._registry)
    if _added is None:
        original = ops.RegisterStatistics

        class KeepWhatIsThere(original):
            def __call__(self, function):
                name = f"{self._op_type},{self._statistic_type}"
                return function if name in before else super().__call__(function)

        ops.RegisterStatistics = KeepWhatIsThere
        try:
            import keras_flops
        finally:
            ops.RegisterStatistics = original
        _added = {name: entry for name, entry in registry._registry.items() if name not in before}
    else:
        import keras_flops

        registry._registry.update(_added)
    try:
        yield keras_flops.get_flops
    finally:
        registry._registry.clear()
        registry._registry.update(before)


@contextlib.contextmanager
def _silent_logger():
    """TensorFlow's logger may hold a handler of its own stream, which `quiet` does not reach."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
