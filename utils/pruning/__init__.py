"""Pruning a trained Keras 3 model: single weights, or whole channels.

Call :func:`prune` first: it zeroes the smallest weights while it fine-tunes a copy. :func:`prune_channels` removes the
expansion channels of inverted-residual blocks and builds a smaller model, which :func:`fine_tune` then trains.
:func:`sparsity_report` and :func:`gzip_bytes` say what is left.
"""

from .channels import Block, ChannelPruned, channel_importance, find_blocks, prune_channels  # noqa: F401
from .magnitude import (  # noqa: F401
    MagnitudePruning,
    Pruned,
    check_share,
    cubic_sparsity,
    fine_tune,
    gzip_bytes,
    prunable,
    prune,
    sparsity_report,
)
