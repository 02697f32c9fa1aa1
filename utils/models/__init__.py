"""The classifiers: study A's baseline CNN, and transfer models on three ImageNet backbones.

Call `transfer(backbone, classes)` or `baseline_cnn(classes)`; `BACKBONES` lists what there is. Every model takes RGB
images in 0..255, carries its own preprocessing, and is one flat functional graph. `weights_source` says what the
pretrained weights are, `set_trainable` chooses what trains, `attach_head` sets the head.
"""

from .networks import (  # noqa: F401
    BACKBONES,
    BASELINE,
    WARM_START,
    baseline_cnn,
    feature_extractor,
    needs_batch_norm,
    transfer,
    weights_source,
)
from .parts import (  # noqa: F401
    attach_head,
    reestimate_batch_norm,
    set_trainable,
    set_weights,
)
from .pretrained import WarmStartWarning, WeightsUnavailable  # noqa: F401
