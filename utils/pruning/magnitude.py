"""Masks over the smallest weights of a Keras 3 model, and the callback that keeps them there while it trains.

tensorflow-model-optimization prunes Keras 2 models only, hence this module. :mod:`utils.pruning` is the way in.

Sparsity is always the share of zeros among the *prunable* weights: the kernels of convolutions and dense layers, but
not of the first convolution and of depthwise convolutions, which Zhu and Gupta leave alone as well (few weights, each
of them needed). Source: Zhu and Gupta 2017, "To prune, or not to prune", arXiv:1710.01878.
"""

import json
import pathlib

import keras
import numpy as np

from utils.files import atomic_path

SCOPES = ("layer", "global")


def cubic_sparsity(step, begin, end, initial, final):
    """Sparsity at a training step: fast at first, where weights are redundant, and slower towards the end.

    s(t) = s_f + (s_i - s_f) * (1 - (t - t_0) / (t_1 - t_0))^3 for t_0 <= t <= t_1; s_i before, s_f after.

    Args:
        step: t, optimizer steps done.
        begin, end: t_0 and t_1, steps.
        initial, final: s_i and s_f, shares of zeros in [0, 1).

    Returns:
        float, the share of zeros.

    Example:
        >>> [round(cubic_sparsity(step, 0, 100, 0.0, 0.8), 3) for step in (0, 50, 100, 200)]
        [0.0, 0.7, 0.8, 0.8]

    Source: Zhu and Gupta 2017, arXiv:1710.01878, equation 1.
    """
    if end <= begin:
        return float(final if step >= end else initial)
    left = 1 - (min(max(step, begin), end) - begin) / (end - begin)
    return float(final + (initial - final) * left**3)


def prunable(model, layers=None):
    """The layers whose kernels pruning may thin out: Conv2D and Dense, without the first convolution.

    Args:
        model: a built Keras 3 model.
        layers: names to choose instead; each must have a kernel.

    Returns:
        list of layers, in the model's order.

    Raises:
        ValueError: there is no such layer, a named layer is missing or has no kernel, or the model is not built.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"pruning works on a Keras model, not on {type(model).__name__}")
    if not model.built:
        raise ValueError(f"model {model.name!r} is not built yet; call it on a batch once")
    flat = [layer for layer in model._flatten_layers(include_self=False) if not isinstance(layer, keras.Model)]
    if layers is not None:
        by_name = {layer.name: layer for layer in flat}
        for name in layers:
            if name not in by_name:
                raise ValueError(f"model {model.name!r} has no layer {name!r} to prune")
            if getattr(by_name[name], "kernel", None) is None:
                raise ValueError(f"layer {name!r} ({type(by_name[name]).__name__}) has no kernel to prune")
        return [by_name[name] for name in layers]
    kinds = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D, keras.layers.Dense)
    depthwise = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
    found = [layer for layer in flat if isinstance(layer, kinds) and not isinstance(layer, depthwise)]
    first = next((layer for layer in found if not isinstance(layer, keras.layers.Dense)), None)
    found = [layer for layer in found if layer is not first]
    if not found:
        raise ValueError(
            f"model {model.name!r} has nothing to prune: no Dense layer and no convolution after the first; "
            "name the layers to prune with layers=[...]"
        )
    return found


def magnitude_masks(kernels, sparsity, scope="layer"):
    """Masks (1 keeps, 0 prunes) that zero the weights of smallest magnitude.

    Args:
        kernels: list of arrays of any shape.
        sparsity: share of zeros, in [0, 1); exactly round(sparsity * size) weights go (per kernel, or altogether).
        scope: "layer" (every kernel equally sparse) or "global" (one threshold for all).

    Returns:
        list of bool arrays, shaped as the kernels.

    Raises:
        ValueError: sparsity outside [0, 1), unknown scope.

    Example:
        >>> magnitude_masks([np.array([0.1, -3.0, 2.0, 0.0])], 0.5)[0].tolist()
        [False, True, True, False]
    """
    check_sparsity(sparsity)
    if scope not in SCOPES:
        raise ValueError(f"scope is {scope!r}; choose one of {', '.join(SCOPES)}")
    return _masks([np.abs(np.asarray(kernel)) for kernel in kernels], sparsity, scope)


def _masks(magnitudes, sparsity, scope):
    if scope == "layer":
        return [_keep_largest(values.ravel(), sparsity).reshape(values.shape) for values in magnitudes]
    together = _keep_largest(np.concatenate([values.ravel() for values in magnitudes]), sparsity)
    parts = np.split(together, np.cumsum([values.size for values in magnitudes])[:-1])
    return [part.reshape(values.shape) for part, values in zip(parts, magnitudes, strict=True)]


def _keep_largest(values, sparsity):
    gone = round(sparsity * values.size)
    keep = np.ones(values.size, bool)
    if gone:
        keep[np.argpartition(values, gone - 1)[:gone]] = False
    return keep


def check_sparsity(sparsity, name="sparsity"):
    """Raise ValueError unless `sparsity` is a number in [0, 1); `name` is what the message calls it."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float, np.number)) or not 0 <= sparsity < 1:
        raise ValueError(f"{name} is {sparsity!r}; give the share of weights to remove, from 0 up to but excluding 1")


class MagnitudePruning(keras.callbacks.Callback):
    """Keras callback that keeps masks over the kernels of `prunable(model)` while the model trains.

    Masks are raised along :func:`cubic_sparsity` every `frequency` steps and applied after every step, so that a pruned
    weight is zero in every forward pass. With `state_path` the masks, the step, all weights and the optimizer's state
    are written after every epoch, whole or not at all; a callback made with the same arguments goes on from there.

    Args:
        sparsity: final share of zeros in [0, 1).
        begin, end: steps between which sparsity rises; end=0 prunes everything at once, at the start.
        initial: share of zeros at `begin`.
        frequency: steps between two raises.
        scope: "layer" or "global", see :func:`magnitude_masks`.
        layers: names of the layers to prune; all of :func:`prunable` by default.
        state_path: file to resume from and to write to, or None.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> model.compile("sgd", "mse")
        >>> _ = model.fit(np.ones((4, 8)), np.ones((4, 4)), callbacks=[MagnitudePruning(0.5, end=1)], verbose=0)
        >>> int((model.layers[0].get_weights()[0] == 0).sum())
        16
    """

    def __init__(
        self, sparsity, begin=0, end=0, initial=0.0, frequency=10, scope="layer", layers=None, state_path=None
    ):
        super().__init__()
        check_sparsity(sparsity)
        check_sparsity(initial, "initial")
        if initial > sparsity:
            raise ValueError(f"initial sparsity {initial} is above the final {sparsity}; it can only rise")
        if scope not in SCOPES:
            raise ValueError(f"scope is {scope!r}; choose one of {', '.join(SCOPES)}")
        if frequency < 1 or begin < 0 or end < 0:
            raise ValueError(
                f"begin {begin}, end {end}, frequency {frequency}: give steps from 0 on, frequency 1 or more"
            )
        self.sparsity, self.begin, self.end, self.initial = float(sparsity), begin, end, float(initial)
        self.frequency, self.scope, self.layer_names = frequency, scope, layers
        self.state_path = None if state_path is None else pathlib.Path(state_path)
        self.step, self.epochs_done, self.records, self.masks = 0, 0, [], None

    def target(self):
        """The share of zeros that is due at the present step."""
        return cubic_sparsity(self.step, self.begin, self.end, self.initial, self.sparsity)

    def set_model(self, model):
        super().set_model(model)
        self.kernels = [layer.kernel for layer in prunable(model, self.layer_names)]

    def on_train_begin(self, logs=None):
        if self.state_path is not None and self.state_path.exists() and self.masks is None:
            self.restore()
        if self.masks is None or self.step >= self.end:
            self.update_masks()
        self.apply_masks()

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        due = (self.step - self.begin) % self.frequency == 0 or self.step == self.end
        if due and self.begin <= self.step <= self.end:
            self.update_masks()
        self.apply_masks()

    def on_epoch_end(self, epoch, logs=None):
        self.epochs_done = epoch + 1
        measured = {name: float(value) for name, value in (logs or {}).items()}
        self.records.append({"epoch": epoch + 1, "step": self.step, "sparsity": self.reached(), **measured})
        if self.state_path is not None:
            self.save()

    def update_masks(self):
        """Take the masks anew from the present magnitudes; weights pruned before are zero and stay pruned."""
        magnitudes = [np.abs(keras.ops.convert_to_numpy(kernel)) for kernel in self.kernels]
        if self.masks is not None:  # -1: weights already pruned sort before weights that merely happen to be zero
            pairs = zip(self._numpy_masks(), magnitudes, strict=True)
            magnitudes = [np.where(mask, values, -1.0) for mask, values in pairs]
        self._set_masks(_masks(magnitudes, self.target(), self.scope))

    def apply_masks(self):
        """Zero the pruned weights."""
        for kernel, mask in zip(self.kernels, self.masks, strict=True):
            kernel.assign(keras.ops.multiply(kernel, mask))

    def reached(self):
        """The share of prunable weights that the masks hold at zero."""
        masks = self._numpy_masks()
        return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.size for mask in masks)

    def _numpy_masks(self):
        return [keras.ops.convert_to_numpy(mask) > 0 for mask in self.masks]

    def _set_masks(self, masks):
        self.masks = [
            keras.ops.convert_to_tensor(mask, dtype=kernel.dtype)
            for mask, kernel in zip(masks, self.kernels, strict=True)
        ]

    def _plan(self):
        shapes = [list(kernel.shape) for kernel in self.kernels]
        return json.dumps(
            {
                "sparsity": self.sparsity, "begin": self.begin, "end": self.end, "initial": self.initial,
                "frequency": self.frequency, "scope": self.scope, "kernels": shapes,
            }
        )  # fmt: skip

    def _variables(self):
        optimizer = getattr(self.model, "optimizer", None)
        return list(self.model.variables) + (list(optimizer.variables) if optimizer is not None else [])

    def save(self):
        """Write masks, step, weights and optimizer state to `state_path`, whole or not at all."""
        arrays = {f"mask_{place}": np.packbits(mask) for place, mask in enumerate(self._numpy_masks())}
        arrays |= {f"variable_{p}": keras.ops.convert_to_numpy(v) for p, v in enumerate(self._variables())}
        progress = {"step": self.step, "epochs_done": self.epochs_done, "records": self.records}
        with atomic_path(self.state_path) as part:
            np.savez(part, plan=self._plan(), progress=json.dumps(progress), **arrays)

    def restore(self):
        """Read `state_path` back into the model, its optimizer and this callback.

        Raises:
            ValueError: the file is damaged, or belongs to another pruning run; nothing is changed then.
        """
        try:
            with np.load(self.state_path) as state:
                arrays = {name: state[name] for name in state.files}
            plan, progress = str(arrays["plan"]), json.loads(str(arrays["progress"]))
        except Exception as error:  # numpy raises half a dozen kinds for a cut file
            raise ValueError(f"{self.state_path} is damaged ({error}); delete it to prune from the start") from error
        variables = self._variables()
        stored = [arrays.get(f"variable_{place}") for place in range(len(variables))]
        fits = all(a is not None and a.shape == tuple(v.shape) for a, v in zip(stored, variables, strict=True))
        if plan != self._plan() or not fits:
            raise ValueError(
                f"{self.state_path} belongs to a pruning run with other settings or another model; "
                "delete it, or choose another folder"
            )
        for variable, array in zip(variables, stored, strict=True):
            variable.assign(array)
        masks = []
        for place, kernel in enumerate(self.kernels):
            size = int(np.prod(kernel.shape))
            masks.append(np.unpackbits(arrays[f"mask_{place}"], count=size).reshape(kernel.shape))
        self._set_masks(masks)
        self.step, self.epochs_done, self.records = progress["step"], progress["epochs_done"], progress["records"]
