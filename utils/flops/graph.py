"""What operations of a backend cost, where a call is counted from the graph that the backend makes of it.

TensorFlow's operations and the equations of a jaxpr alike: matrix products and convolutions from their shapes, loops
times their length, what stands in inner functions too. An operation that stands in no list below is named.
"""

from ..layer_calls import backend_graph
from .formulas import Cost, conv_transpose_macs, einsum_macs, elements, product


def _words(text):
    return frozenset(text.split())


# TensorFlow's names and JAX's, each alike in what they cost.
FREE = _words("""
    Const Placeholder PlaceholderWithDefault Identity IdentityN NoOp ReadVariableOp VarHandleOp Reshape Transpose
    ExpandDims Squeeze Concat ConcatV2 Split SplitV Pack Unpack StridedSlice Slice Pad PadV2 MirrorPad Tile Gather
    GatherV2 GatherNd ResourceGather ResourceGatherNd ScatterNd TensorScatterUpdate Shape ShapeN Size Rank Range Fill
    Cast Bitcast OneHot ZerosLike OnesLike BroadcastTo BroadcastArgs Reverse ReverseV2 StopGradient PreventGradient
    TensorListReserve TensorListFromTensor TensorListStack TensorListGetItem TensorListSetItem TensorListLength
    EmptyTensorList TensorListPushBack TensorListPopBack TensorListElementShape TensorListGather TensorListScatter
    SpaceToBatchND BatchToSpaceND SpaceToDepth DepthToSpace MatrixBandPart MatrixDiagV3 MatrixDiagPartV3 MatrixSetDiagV3
    Roll Where Unique UniqueV2 DynamicStitch DynamicPartition InvertPermutation ExtractImagePatches Empty Assert
    ConjugateTranspose Snapshot EnsureShape RandomUniform RandomStandardNormal StatelessRandomUniformV2
    StatelessRandomNormalV2 StatelessRandomGetKeyCounter StatelessRandomGetAlg LinSpace ParallelConcat EditDistance
    AssignVariableOp Real Imag Complex TopKV2 Bincount DenseBincount SegmentSumV2 UnsortedSegmentSum Print PrintV2
    SegmentSum UnsortedSegmentMax UnsortedSegmentMean ResizeNearestNeighbor NextAfter StringFormat LookupTableFindV2
    TensorScatterAdd TensorScatterSub DataFormatDimMap DataFormatVecPermute
    reshape transpose broadcast_in_dim slice dynamic_slice dynamic_update_slice gather scatter scatter-add scatter_add
    concatenate stack unstack tile convert_element_type iota squeeze pad rev copy copy_p stop_gradient expand_dims
    bitcast_convert_type
    random_bits random_seed random_wrap random_unwrap random_fold_in random_split threefry2x32 split device_put real
    imag complex optimization_barrier top_k sort sharding_constraint layout_constraint split_p empty full
    name pvary reduce_precision platform_index
""")
EACH = _words("""
    Add AddV2 Sub Mul Div RealDiv DivNoNan FloorDiv FloorMod Mod TruncateDiv TruncateMod Maximum Minimum Pow Atan2
    Square Sqrt Rsqrt Reciprocal Exp Expm1 Log Log1p Sin Cos Tan Sinh Cosh Asin Acos Atan Asinh Acosh Atanh Tanh Abs Neg
    Sign Floor Ceil Round Rint Erf Erfc Erfinv Ndtri Lgamma Digamma Inv Relu BiasAdd Equal NotEqual Less LessEqual
    Greater GreaterEqual LogicalAnd LogicalOr LogicalNot LogicalXor Select SelectV2 IsNan IsInf IsFinite BitwiseAnd
    BitwiseOr BitwiseXor Invert LeftShift RightShift ComplexAbs Xdivy Xlogy MulNoNan
    add sub mul div rem max min pow atan2 integer_pow square sqrt rsqrt cbrt exp exp2 expm1 log log1p sin cos tan sinh
    cosh asin acos atan asinh acosh atanh tanh abs neg sign floor ceil round erf erfc erf_inv lgamma digamma eq ne lt le
    gt ge eq_to lt_to le_to and or not xor select_n is_finite shift_left shift_right_logical shift_right_arithmetic
    add_any nextafter population_count clz
""")
TIMES = {
    "AddN": 1, "Relu6": 2, "LeakyRelu": 2, "SquaredDifference": 2, "ClipByValue": 2, "clamp": 2, "Softplus": 3,
    "Softsign": 3, "Elu": 3, "L2Loss": 2, "Sigmoid": 4, "logistic": 4, "Selu": 5, "Softmax": 5, "LogSoftmax": 5,
    "FusedBatchNorm": 2, "FusedBatchNormV2": 2, "FusedBatchNormV3": 2, "ResizeBilinear": 7,
    "CropAndResize": 7, "ResizeBicubic": 31,
}  # fmt: skip
REDUCE = _words("""
    Sum Mean Max Min Prod All Any ArgMax ArgMin Cumsum Cumprod EuclideanNorm
    reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin cumsum cumprod cummax cummin
    cumlogsumexp reduce_window_sum reduce_window_max reduce_xor
""")
CALLS = _words("PartitionedCall StatefulPartitionedCall")


def operations_cost(operations):
    """Cost of the backend's operations of one call; `unknown` names what could not be counted of them."""
    total = Cost()
    for operation in operations:
        if isinstance(operation, int):  # all that PyTorch tells is a sum, which may hold what other rows count
            total += Cost(unknown=f"PyTorch's {operation:,} MACs on weights and constants")
        else:
            total += _tensorflow(operation) if hasattr(operation, "op_def") else _equation(operation)
    return Cost(total.macs, total.elementwise, "; ".join(dict.fromkeys((total.unknown or "").split("; "))) or None)


def _shapes(tensors):
    return [None if tensor.shape.rank is None else tuple(tensor.shape) for tensor in tensors]


def _tensorflow(operation):
    kind = operation.type
    if kind in FREE:
        return Cost()
    if kind in CALLS:
        return operations_cost(_function(operation, "f").get_operations())
    if kind in ("While", "StatelessWhile"):
        return _loop(operation)
    if kind in ("If", "StatelessIf"):
        branches = [_function(operation, name) for name in ("then_branch", "else_branch")]
        return either([operations_cost(branch.get_operations()) for branch in branches])
    if kind in ("Case", "StatelessCase"):
        graphs = [_graph(operation.graph, function.name) for function in operation.get_attr("branches")]
        return either([operations_cost(graph.get_operations()) for graph in graphs])
    given, gives = _shapes(operation.inputs), _shapes(operation.outputs)
    if (
        kind in REDUCE
        or kind in EACH
        or kind in TIMES
        or kind in PRODUCTS
        or kind in ("MaxPool", "AvgPool", "MaxPoolV2")
    ):
        read = given[:1] if kind in REDUCE else gives if kind not in PRODUCTS else [*given, *gives]
        if any(shape is None or None in shape for shape in read):
            return Cost(unknown=f"the shape in its operation {kind!r} depends on the data")
    if kind in PRODUCTS:
        return Cost(PRODUCTS[kind](operation, given, gives))
    if kind in REDUCE:
        return Cost(0, elements(given[0]))
    if kind in ("MaxPool", "AvgPool"):
        return Cost(0, elements(gives[0]) * product(operation.get_attr("ksize")))
    if kind == "AddN":
        return Cost(0, (len(given) - 1) * elements(gives[0]))
    if kind in EACH or kind in TIMES:
        return Cost(0, TIMES.get(kind, 1) * elements(gives[0]))
    return Cost(unknown=f"its operation {kind!r} of TensorFlow has no rule")


def _matmul(operation, given, gives):
    transposed = operation.get_attr("transpose_a" if operation.type == "MatMul" else "adj_x")
    return elements(gives[0]) * given[0][-2 if transposed else -1]


def _kernel(leave):
    """Every output element reads the kernel but for its last `leave` axes."""
    return lambda operation, given, gives: elements(gives[0]) * product(given[1][:-leave])


PRODUCTS = {
    **dict.fromkeys(("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"), _matmul),
    "Einsum": lambda operation, given, gives: einsum_macs(operation.get_attr("equation").decode(), *given),
    **dict.fromkeys(("Conv2D", "Conv3D", "Conv"), _kernel(1)),
    "DepthwiseConv2dNative": _kernel(2),
    **dict.fromkeys(
        ("Conv2DBackpropInput", "Conv3DBackpropInputV2"),  # transposed convolutions: the kernel is (..., C_out, C_in)
        lambda operation, given, gives: elements(given[2]) * product(given[1][:-1]),
    ),
    "DepthwiseConv2dNativeBackpropInput": lambda operation, given, gives: elements(given[2]) * product(given[1][:-2]),
}


def either(costs):
    """A branch that the data choose: known where all cost the same."""
    if len({cost.macs for cost in costs}) == 1:
        unknown = "; ".join(dict.fromkeys(cost.unknown for cost in costs if cost.unknown))
        return Cost(costs[0].macs, max(cost.elementwise for cost in costs), unknown or None)
    macs = " or ".join(f"{cost.macs:,}" for cost in costs)
    return Cost(unknown=f"which branch runs depends on the data ({macs} MACs)")


def _graph(graph, name):
    while graph is not None:
        function = graph._functions.get(name) if hasattr(graph, "_functions") else None
        function = function or (graph._get_function(name) if hasattr(graph, "_get_function") else None)
        if function is not None:
            return function.graph
        graph = getattr(graph, "outer_graph", None)
    raise KeyError(name)


def _function(operation, attribute):
    return _graph(operation.graph, operation.get_attr(attribute).name)


def _loop(operation):
    body = _function(operation, "body")
    once = operations_cost(body.get_operations())
    if not (once.macs or once.elementwise or once.unknown):
        return once
    steps = _steps(operation, _function(operation, "cond"), body)
    if steps is None:
        return Cost(unknown=f"how often its loop runs depends on the data ({once.macs:,} MACs each time)")
    return Cost(steps * once.macs, steps * once.elementwise, once.unknown)


def _steps(operation, condition, body, most=100_000):
    """How often a loop runs, by running its counters alone; None where they depend on the data."""
    import tensorflow as tf

    def behind(tensors, graph):
        """Positions of the loop's variables that tensors of its condition or body depend on."""
        seen, stack = set(), [tensor.op for tensor in tensors]
        while stack:
            one = stack.pop()
            if one not in seen:
                seen.add(one)
                stack += [tensor.op for tensor in one.inputs]
        return {at for at, tensor in enumerate(graph.inputs) if tensor.op in seen}

    needed, found = set(), behind(condition.outputs, condition)
    while found - needed:
        needed |= found
        found = behind([body.outputs[at] for at in needed], body)
    order = sorted(needed)
    try:
        values = [tf.get_static_value(operation.inputs[at]) for at in order]
        if any(value is None for value in values):
            with tf.compat.v1.Session(graph=operation.graph) as session:
                values = session.run([operation.inputs[at] for at in order])
        with tf.compat.v1.Session(graph=condition) as ask, tf.compat.v1.Session(graph=body) as step:
            for count in range(most):
                if not ask.run(
                    condition.outputs[0], {condition.inputs[at].name: v for at, v in zip(order, values, strict=True)}
                ):
                    return count
                feed = {body.inputs[at].name: value for at, value in zip(order, values, strict=True)}
                values = step.run([body.outputs[at] for at in order], feed)
    except Exception:
        return None
    return None


# --- equations of a jaxpr ---------------------------------------------------------------------------------------------


def _equation(equation):
    kind = equation.primitive.name
    if kind == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return Cost(elements(equation.outvars[0].aval.shape) * product(left[axis] for axis in contracted))
    if kind == "conv_general_dilated":
        return Cost(_jax_conv(equation))
    if kind in FREE:
        return Cost()
    if kind in REDUCE:
        return Cost(0, elements(equation.invars[0].aval.shape))
    if kind in EACH or kind in TIMES:
        return Cost(0, TIMES.get(kind, 1) * elements(equation.outvars[0].aval.shape))
    if equation.params.get("name") in ("_resize", "_scale_and_translate"):  # products with matrices, in JAX's writing
        return Cost(0, TIMES["ResizeBilinear"] * elements(equation.outvars[0].aval.shape))
    if kind == "custom_linear_solve":  # its parameters hold every way to solve it, of which one runs
        return Cost(unknown="its solution of linear equations has no rule")
    inner = [operations_cost(jaxpr.eqns) for jaxpr in backend_graph.inner_jaxprs(equation)]
    if kind == "cond":
        return either(inner)
    once = sum(inner, Cost())
    if kind == "scan":
        return Cost(equation.params["length"] * once.macs, equation.params["length"] * once.elementwise, once.unknown)
    if kind == "while":
        steps = _jax_steps(equation)
        if steps is None:
            return Cost(unknown=f"how often its loop runs depends on the data ({once.macs:,} MACs each time)")
        return Cost(steps * once.macs, steps * once.elementwise, once.unknown)
    if inner and "callback" not in kind:
        return once
    return Cost(unknown=f"its operation {kind!r} of JAX has no rule")


def _jax_conv(equation):
    numbers, kernel = equation.params["dimension_numbers"], equation.invars[1].aval.shape
    out, into, *inside = numbers.rhs_spec
    taps = product(kernel[axis] for axis in inside)
    if product(equation.params["lhs_dilation"]) > 1:  # transposed: every input element is spread over one kernel
        return conv_transpose_macs([taps], equation.invars[0].aval.shape, kernel[out])
    return elements(equation.outvars[0].aval.shape) * taps * kernel[into]


def _jax_steps(equation, most=100_000):
    """How often a while loop of JAX runs, by running its counters alone; None where they depend on the data."""
    import jax

    literal = type(jax.make_jaxpr(lambda: 0)().jaxpr.outvars[0])
    condition, body = equation.params["cond_jaxpr"], equation.params["body_jaxpr"]
    skipped = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    start = [var.val if isinstance(var, literal) else None for var in equation.invars[sum(skipped) :]]

    def run(closed, consts, values, wanted):
        """The wanted outputs of a jaxpr, from the inputs that are known; ValueError where they need another."""
        jaxpr, known = closed.jaxpr, dict(zip(map(id, closed.jaxpr.constvars), closed.consts, strict=True))
        known.update((id(var), v) for var, v in zip(jaxpr.invars[consts:], values, strict=True) if v is not None)
        live, kept = {id(jaxpr.outvars[at]) for at in wanted}, []
        for one in reversed(jaxpr.eqns):
            if live.intersection(map(id, one.outvars)):
                kept.append(one)
                live.update(map(id, one.invars))
        for one in reversed(kept):
            inputs = [var.val if isinstance(var, literal) else known[id(var)] for var in one.invars]
            outputs = one.primitive.bind(*inputs, **one.params)
            outputs = outputs if one.primitive.multiple_results else [outputs]
            known.update((id(var), v) for var, v in zip(one.outvars, outputs, strict=True))
        read = [jaxpr.outvars[at] for at in wanted]
        return [var.val if isinstance(var, literal) else known[id(var)] for var in read]

    values = start
    for count in range(most):
        try:
            if not run(condition, skipped[0], values, [0])[0]:
                return count
        except KeyError:
            return None
        following = []
        for at in range(len(values)):
            try:
                following.append(run(body, skipped[1], values, [at])[0] if values[at] is not None else None)
            except KeyError:
                following.append(None)
        values = following
    return None
