"""The classifiers: study A's baseline CNN, and transfer models on three ImageNet backbones."""

from .networks import (  # noqa: F401
    BACKBONES,
    WARM_START,
    Backbone,
    WarmStartWarning,
    WeightsUnavailable,
    attach_head,
    baseline_cnn,
    feature_extractor,
    load,
    needs_batch_norm,
    reestimate_batch_norm,
    save,
    set_trainable,
    split_at_features,
    summary_table,
    transfer,
    weights_source,
)
