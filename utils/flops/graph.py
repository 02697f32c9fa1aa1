"""What operations of a backend cost, where a call is counted from the graph that the backend makes of it.

TensorFlow's operations and the equations of a jaxpr alike: matrix products and convolutions from their shapes, loops
times their length, what stands in inner functions too. An operation that stands in no list below is named.
"""

from ..layer_calls import backend_graph
from .formulas import Cost, by_name, conv_transpose_macs, einsum_macs, either, elements, product, repeated, words

MOST_STEPS = 100_000  # of a loop that is counted by running its counters
# TensorFlow's names and JAX's, each alike in what they cost: so many operations for each output element (AddN and
# pooling: for each further input, each element of a window), or one for each element of the first input.
TIMES = by_name({
    0: """
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
    name pvary reduce_precision platform_index""",
    1: """
    Add AddV2 Sub Mul Div RealDiv DivNoNan FloorDiv FloorMod Mod TruncateDiv TruncateMod Maximum Minimum Pow Atan2
    Square Sqrt Rsqrt Reciprocal Exp Expm1 Log Log1p Sin Cos Tan Sinh Cosh Asin Acos Atan Asinh Acosh Atanh Tanh Abs Neg
    Sign Floor Ceil Round Rint Erf Erfc Erfinv Ndtri Lgamma Digamma Inv Relu BiasAdd Equal NotEqual Less LessEqual
    Greater GreaterEqual LogicalAnd LogicalOr LogicalNot LogicalXor Select SelectV2 IsNan IsInf IsFinite BitwiseAnd
    BitwiseOr BitwiseXor Invert LeftShift RightShift ComplexAbs Xdivy Xlogy MulNoNan
    add sub mul div rem max min pow atan2 integer_pow square sqrt rsqrt cbrt exp exp2 expm1 log log1p sin cos tan sinh
    cosh asin acos atan asinh acosh atanh tanh abs neg sign floor ceil round erf erfc erf_inv lgamma digamma eq ne lt le
    gt ge eq_to lt_to le_to and or not xor select_n is_finite shift_left shift_right_logical shift_right_arithmetic
    add_any nextafter population_count clz AddN MaxPool AvgPool""",
    2: "Relu6 LeakyRelu SquaredDifference ClipByValue clamp L2Loss FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3",
    3: "Softplus Softsign Elu",
    4: "Sigmoid logistic",
    5: "Selu Softmax LogSoftmax",
    7: "ResizeBilinear CropAndResize",
    31: "ResizeBicubic",
})  # fmt: skip
REDUCE = words("""
    Sum Mean Max Min Prod All Any ArgMax ArgMin Cumsum Cumprod EuclideanNorm
    reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin cumsum cumprod cummax cummin
    cumlogsumexp reduce_window_sum reduce_window_max reduce_xor
""")


def operations_cost(operations):
    """Cost of the backend's operations of one call; `unknown` names what could not be counted of them."""
    total = Cost()
    for operation in operations:
        if isinstance(operation, int):  # all that PyTorch tells is a sum, which may hold what other rows count
            total += Cost(unknown=f"PyTorch's {operation:,} MACs on weights and constants")
        else:
            total += _tensorflow(operation) if hasattr(operation, "op_def") else _equation(operation)
    return Cost(total.macs, total.elementwise, "; ".join(dict.fromkeys((total.unknown or "").split("; "))) or None)


def _tensorflow(operation):
    kind = operation.type
    if TIMES.get(kind) == 0:
        return Cost()
    if kind in ("PartitionedCall", "StatefulPartitionedCall"):
        return _called(operation, operation.get_attr("f"))
    if kind in ("While", "StatelessWhile"):
        once = _called(operation, operation.get_attr("body"))
        return once if once == Cost() else repeated(once, _steps(operation))
    if kind in ("If", "StatelessIf"):
        return either([_called(operation, operation.get_attr(name)) for name in ("then_branch", "else_branch")])
    if kind in ("Case", "StatelessCase"):
        return either([_called(operation, branch) for branch in operation.get_attr("branches")])
    if kind not in TIMES and kind not in REDUCE and kind not in PRODUCTS:
        return Cost(unknown=f"its operation {kind!r} of TensorFlow has no rule")
    given, gives = (
        [None if tensor.shape.rank is None else tuple(tensor.shape) for tensor in tensors]
        for tensors in (operation.inputs, operation.outputs)
    )
    read = given[:1] if kind in REDUCE else gives if kind in TIMES else [*given, *gives]
    if any(shape is None or None in shape for shape in read):
        return Cost(unknown=f"the shape in its operation {kind!r} depends on the data")
    if kind in PRODUCTS:
        return Cost(PRODUCTS[kind](operation, given, gives))
    if kind in REDUCE:
        return Cost(0, elements(given[0]))
    times = TIMES[kind]
    if kind == "AddN":
        times = len(given) - 1
    elif kind in ("MaxPool", "AvgPool"):
        times = product(operation.get_attr("ksize"))
    return Cost(0, times * elements(gives[0]))


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


def _graph(operation, function):
    """The graph of a function that an operation calls: its own graph knows it, or one around that."""
    graph = operation.graph
    while (found := graph._get_function(function.name)) is None:
        graph = graph.outer_graph
    return found.graph


def _called(operation, function):
    return operations_cost(_graph(operation, function).get_operations())


def _steps(operation):
    """How often a loop runs, by running its counters alone; None where they depend on the data."""
    import tensorflow as tf

    condition, body = (_graph(operation, operation.get_attr(name)) for name in ("cond", "body"))

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
            for count in range(MOST_STEPS):
                asked, fed = (
                    {graph.inputs[at].name: value for at, value in zip(order, values, strict=True)}
                    for graph in (condition, body)
                )
                if not ask.run(condition.outputs[0], asked):
                    return count
                values = step.run([body.outputs[at] for at in order], fed)
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
    if TIMES.get(kind) == 0:
        return Cost()
    if kind in REDUCE:
        return Cost(0, elements(equation.invars[0].aval.shape))
    if kind in TIMES:
        return Cost(0, TIMES[kind] * elements(equation.outvars[0].aval.shape))
    if equation.params.get("name") in ("_resize", "_scale_and_translate"):  # products with matrices, in JAX's writing
        return Cost(0, TIMES["ResizeBilinear"] * elements(equation.outvars[0].aval.shape))
    if kind == "custom_linear_solve":  # its parameters hold every way to solve it, of which one runs
        return Cost(unknown="its solution of linear equations has no rule")
    inner = [operations_cost(jaxpr.eqns) for jaxpr in backend_graph.inner_jaxprs(equation)]
    if kind == "cond":
        return either(inner)
    once = sum(inner, Cost())
    if kind == "scan":
        return repeated(once, equation.params["length"])
    if kind == "while":
        return repeated(once, _jax_steps(equation))
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


def _jax_steps(equation):
    """How often a while loop of JAX runs, by running its counters alone; None where they depend on the data."""
    import jax

    literal = type(jax.make_jaxpr(lambda: 0)().jaxpr.outvars[0])
    condition, body = equation.params["cond_jaxpr"], equation.params["body_jaxpr"]
    skipped = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    values = [var.val if isinstance(var, literal) else None for var in equation.invars[sum(skipped) :]]

    def run(closed, consts, wanted):
        """One output of a jaxpr, from the inputs that are known; None where it needs another."""
        jaxpr, known = closed.jaxpr, dict(zip(map(id, closed.jaxpr.constvars), closed.consts, strict=True))
        known.update((id(var), v) for var, v in zip(jaxpr.invars[consts:], values, strict=True) if v is not None)
        live, kept = {id(jaxpr.outvars[wanted])}, []
        for one in reversed(jaxpr.eqns):
            if live.intersection(map(id, one.outvars)):
                kept.append(one)
                live.update(map(id, one.invars))
        for one in reversed(kept):
            inputs = [var.val if isinstance(var, literal) else known.get(id(var)) for var in one.invars]
            if any(value is None for value in inputs):
                return None
            outputs = one.primitive.bind(*inputs, **one.params)
            outputs = outputs if one.primitive.multiple_results else [outputs]
            known.update((id(var), v) for var, v in zip(one.outvars, outputs, strict=True))
        output = jaxpr.outvars[wanted]
        return output.val if isinstance(output, literal) else known.get(id(output))

    for count in range(MOST_STEPS):
        going = run(condition, skipped[0], 0)
        if going is None or not going:
            return None if going is None else count
        values = [None if old is None else run(body, skipped[1], at) for at, old in enumerate(values)]
    return None
