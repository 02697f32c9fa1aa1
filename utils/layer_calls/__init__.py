"""Every layer call of a Keras 3 model, in execution order, with full shapes and the data flow between them."""

from .walk import (  # noqa: F401
    LayerCall,
    layer_calls,
)
