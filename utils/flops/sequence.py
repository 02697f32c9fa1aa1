"""What recurrent and attention layers cost. See :mod:`utils.flops.layers` for the convention."""

import keras

from . import elementwise
from .formulas import Cost, elements, product

layers = keras.layers


# --- recurrent layers: cost of a step times the number of steps -------------------------------------------------------


def lstm_macs(batch, steps, features, units):
    """MACs of an LSTM: steps * 4 gates * units * (features + units), bias excluded.

    Example:
        >>> lstm_macs(1, 10, 8, 16)
        15360

    Source: Hochreiter and Schmidhuber 1997; gates as in Gers et al. 2000.
    """
    return batch * steps * 4 * units * (features + units)


def gru_macs(batch, steps, features, units):
    """MACs of a GRU: steps * 3 gates * units * (features + units), with the reset before or after the product alike.

    Source: Cho et al. 2014, arXiv:1406.1078.
    """
    return batch * steps * 3 * units * (features + units)


def simple_rnn_macs(batch, steps, features, units):
    """MACs of a SimpleRNN: steps * units * (features + units)."""
    return batch * steps * units * (features + units)


def _activations(cell, shape, recurrent, plain):
    cost = Cost()
    for function, times in ((getattr(cell, "recurrent_activation", None), recurrent), (cell.activation, plain)):
        one = elementwise.activation(function, shape)
        cost += Cost(0, times * one.elementwise, one.unknown)
    return cost


def cell_cost(cell, batch, features):
    """Cost of one step of an RNN cell, and the number of features that it gives."""
    if isinstance(cell, layers.StackedRNNCells):
        total = Cost()
        for part in cell.cells:
            cost, features = cell_cost(part, batch, features)
            total += cost
        return total, features
    units = getattr(cell, "units", None)
    state = (batch, units)
    bias = bool(getattr(cell, "use_bias", False))
    if isinstance(cell, layers.LSTMCell):  # gates: sum of both products and bias; then f*c + i*g and o*act(c)
        own = Cost(lstm_macs(batch, 1, features, units), batch * units * (4 + 4 * bias + 4))
        return own + _activations(cell, state, 3, 2), units
    if isinstance(cell, layers.GRUCell):  # three sums, r*h, then z*h + (1 - z)*g
        biases = 3 * bias * (2 if cell.reset_after else 1)
        own = Cost(gru_macs(batch, 1, features, units), batch * units * (3 + biases + 1 + 4))
        return own + _activations(cell, state, 2, 1), units
    if isinstance(cell, layers.SimpleRNNCell):
        own = Cost(simple_rnn_macs(batch, 1, features, units), batch * units * (1 + bias))
        return own + _activations(cell, state, 0, 1), units
    return Cost(unknown=f"its cell {type(cell).__name__!r}"), None


def recurrent(layer, input_shapes, output_shapes):
    """LSTM, GRU, SimpleRNN and RNN over cells of Keras: every step of every sequence is computed."""
    batch, steps = input_shapes[0][:2]
    cost, _ = cell_cost(layer.cell, batch, product(input_shapes[0][2:]))
    return Cost(cost.macs * steps, cost.elementwise * steps, cost.unknown)


def conv_lstm(layer, input_shapes, output_shapes):
    """ConvLSTM1D, 2D, 3D: four gates of one convolution over the input and one, SAME, over the state.

    MACs = steps * positions_out * kernel_elements * (C_in + filters) * 4 * filters.

    Source: Shi et al. 2015, arXiv:1506.04214.
    """
    first = layer.data_format == "channels_first"
    batch, steps = input_shapes[0][:2]
    channels = input_shapes[0][2] if first else input_shapes[0][-1]
    rank = len(layer.kernel_size)
    inside = output_shapes[0][-rank:] if first else output_shapes[0][-rank - 1 : -1]
    state = (batch, *inside, layer.filters)
    macs = steps * elements(state) * product(layer.kernel_size) * (channels + layer.filters) * 4
    one = Cost(0, elements(state) * (4 + 4 * bool(layer.use_bias) + 4)) + _activations(layer.cell, state, 3, 2)
    return Cost(macs, one.elementwise * steps, one.unknown)


def bidirectional(layer, input_shapes, output_shapes):
    """Bidirectional's closing call: joining both directions costs nothing; sum and product one operation, mean two."""
    operations = {"sum": 1, "mul": 1, "ave": 2}.get(layer.merge_mode, 0)
    return Cost(0, operations * elements(output_shapes[0]))


# --- attention --------------------------------------------------------------------------------------------------------


def attention_macs(batch, heads, queries, keys, key_dim, value_dim):
    """MACs of scaled dot-product attention without projections: scores and weighted sum.

    MACs = batch * heads * queries * keys * (key_dim + value_dim); a causal mask does not reduce it, since all scores
    are computed and then masked.

    Source: Vaswani et al. 2017, arXiv:1706.03762.
    """
    return batch * heads * queries * keys * (key_dim + value_dim)


def _query_value_key(input_shapes):
    query, value = input_shapes[0], input_shapes[1]
    return query, value, input_shapes[2] if len(input_shapes) > 2 else value


def multi_head_attention(layer, input_shapes, output_shapes):
    """MultiHeadAttention: four projections, scores, weighted sum; attention over any axes."""
    query, value, key = _query_value_key(input_shapes)
    heads, key_dim, value_dim = layer.num_heads, layer.key_dim, layer.value_dim
    axes = layer.attention_axes
    axes = (axes,) if isinstance(axes, int) else tuple(axes or range(1, len(query) - 1))
    axes = tuple(axis % len(query) for axis in axes)
    free = product(dim for axis, dim in enumerate(query[:-1]) if axis not in axes)
    queries, keys = product(query[axis] for axis in axes), product(value[axis] for axis in axes)
    out = elements(output_shapes[0])
    rows, value_rows, key_rows = product(query[:-1]), product(value[:-1]), product(key[:-1])
    macs = (
        elements(query) * heads * key_dim
        + elements(key) * heads * key_dim
        + elements(value) * heads * value_dim
        + attention_macs(free, heads, queries, keys, key_dim, value_dim)
        + out * heads * value_dim
    )
    biases = rows * heads * key_dim + key_rows * heads * key_dim + value_rows * heads * value_dim + out
    scale, softmax = rows * heads * key_dim, 5 * free * heads * queries * keys
    return Cost(macs, scale + softmax + (biases if layer.use_bias else 0))


def group_query_attention(layer, input_shapes, output_shapes):
    """GroupQueryAttention: keys and values have fewer heads, which are repeated, not computed again.

    Source: Ainslie et al. 2023, arXiv:2305.13245.
    """
    query, value, key = _query_value_key(input_shapes)
    heads, shared, dim = layer.num_query_heads, layer.num_key_value_heads, layer.head_dim
    gate = bool(getattr(layer, "use_gate", False))
    batch, queries, keys = query[0], product(query[1:-1]), product(value[1:-1])
    out = elements(output_shapes[0])
    gated = batch * queries * heads * dim
    macs = (
        elements(query) * heads * dim * (1 + gate)
        + (elements(key) + elements(value)) * shared * dim
        + attention_macs(batch, heads, queries, keys, dim, dim)
        + out * heads * dim
    )
    biases = gated * (1 + gate) + 2 * batch * keys * shared * dim + out
    scale, softmax = gated, 5 * batch * heads * queries * keys
    return Cost(macs, scale + softmax + (biases if layer.use_bias else 0) + gate * 5 * gated)


def attention(layer, input_shapes, output_shapes):
    """Attention (Luong): scores by product, or by tanh of a sum ("concat"), then the weighted sum.

    Source: Luong et al. 2015, arXiv:1508.04025.
    """
    query, value, _ = _query_value_key(input_shapes)
    batch, queries, keys = query[0], query[1], value[1]
    pairs = batch * queries * keys
    macs = pairs * value[-1]
    scaled = bool(layer.use_scale)
    if layer.score_mode == "dot":
        return Cost(macs + pairs * query[-1], pairs * (5 + scaled))
    # concat: q + k, times the scale, tanh, sum over the features; then one weight for all scores
    return Cost(macs, pairs * (query[-1] * (3 + scaled) + 1 + 5))


def additive_attention(layer, input_shapes, output_shapes):
    """AdditiveAttention (Bahdanau): a learned vector times tanh(q + k), then the weighted sum.

    Source: Bahdanau et al. 2014, arXiv:1409.0473.
    """
    query, value, _ = _query_value_key(input_shapes)
    pairs = query[0] * query[1] * value[1]
    learned = pairs * query[-1] if layer.use_scale else 0
    summed = 0 if layer.use_scale else pairs * query[-1]
    return Cost(pairs * value[-1] + learned, pairs * (2 * query[-1] + 5) + summed)


RULES = {
    layers.RNN: recurrent,
    **dict.fromkeys((layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D), conv_lstm),
    layers.Bidirectional: bidirectional,
    layers.MultiHeadAttention: multi_head_attention,
    layers.GroupQueryAttention: group_query_attention,
    layers.Attention: attention,
    layers.AdditiveAttention: additive_attention,
}
