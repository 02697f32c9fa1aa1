"""Every layer call of a Keras 3 model, in execution order, with full shapes and the data flow between them.

Call `layer_calls(model)`: it lists one LayerCall for each call. The instruments (`flops`, `receptive_field`, `pruning`)
read a model through this one function. It knows Keras and nothing else. What Keras does not publish is read in one
place, `keras_graph`.
"""

from . import keras_graph
from .walk import LayerCall, layer_calls

__all__ = ["LayerCall", "keras_graph", "layer_calls"]
