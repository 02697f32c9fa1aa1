"""Slices, reshapes, transposes, joins, windows, decoders as people write them, against gradients."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops
from support_oracle import positive_weights, support

from utils.receptive_field import receptive_field, table


def conv(kernel=3, stride=1, filters=2, padding="same", dilation=1):
    return layers.Conv2D(filters, kernel, stride, padding, dilation_rate=dilation, use_bias=False)


def shared(x):
    layer = conv((3, 5))
    return layers.Add()([layer(x), layers.UpSampling2D(2)(layer(layers.AveragePooling2D(2)(x)))])


def space_to_depth(x, side=4):
    _, height, width, channels = x.shape
    x = ops.reshape(x, (-1, height // side, side, width // side, side, channels))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, height // side, width // side, side * side * channels))


def pixel_shuffle(x, side=2):
    _, height, width, channels = x.shape
    x = ops.reshape(x, (-1, height, width, side, side, channels // side**2))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, height * side, width * side, channels // side**2))


def windowed(x, mixed, side=4):
    """`mixed` on the tokens of each window, which lie in the batch meanwhile."""
    _, height, width, channels = x.shape
    x = ops.reshape(x, (-1, height // side, side, width // side, side, channels))
    x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, side * side, channels))
    x = ops.reshape(mixed(x), (-1, height // side, width // side, side, side, channels))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, height, width, channels))


def space_to_batch(x):
    x = ops.transpose(ops.reshape(x, (-1, 20, 2, 24, 2, 2)), (0, 2, 4, 1, 3, 5))
    return ops.reshape(x, (-1, 20, 24, 2))


def batch_to_space(x):
    x = ops.transpose(ops.reshape(x, (-1, 2, 2, 20, 24, 2)), (0, 3, 1, 4, 2, 5))
    return ops.reshape(x, (-1, 40, 48, 2))


def cells(x):
    return layers.TimeDistributed(layers.TimeDistributed(layers.Dense(3, use_bias=False)))(x)


def woven(one, two, axis):
    """Rows (or columns) of two tensors by turns, as fully convolutional up-projections write them."""
    shape = [side * (1 + (at == axis)) for at, side in enumerate(one.shape[1:], 1)]
    return ops.reshape(ops.stack([one, two], axis=axis + 1), (-1, *shape))


def up_projected(x):
    return woven(woven(conv(2)(x), conv((2, 3))(x), 2), woven(conv((3, 2))(x), conv()(x), 2), 1)


def shuffled(x):
    """The channels of two groups by turns, as ShuffleNet has them."""
    x = ops.transpose(ops.reshape(ops.concatenate([x, conv(5)(x)], -1), (-1, 40, 48, 2, 2)), (0, 1, 2, 4, 3))
    return ops.reshape(x, (-1, 40, 48, 4))


def window_mean(x):
    return x + ops.mean(x, axis=1, keepdims=True)


def unpatched(x):
    x = ops.reshape(ops.image.extract_patches(x, 4), (-1, 10, 12, 4, 4, 2))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 40, 48, 2))


def decoder(x, depth=2, down=1):
    skips = []
    for _ in range(depth):
        for _ in range(down):
            x = conv()(x)
        skips.append(x)
        x = layers.AveragePooling2D(2)(x)
    x = conv()(x)
    for skip in reversed(skips):
        x = layers.Conv2DTranspose(2, 2, strides=2, use_bias=False)(x)
        x = conv()(layers.Concatenate()([skip, x]))
    return x


KERNEL = np.ones((2, 4))
PERIODIC = {"transposed same", "transposed valid", "up-sampling nearest", "up-sampling bilinear", "convolution behind"}
EDGES = ((0, 0), (3, 2), (1, 4), (0, 0))
# These are tried on sides that SAME padding does not divide.
LAYERS = {
    "strided, non-square": lambda x: conv((3, 2), (1, 2))(conv((5, 3), (2, 1))(x)),
    "dilated same": lambda x: conv(3, 2)(conv((3, 5), dilation=(4, 2))(x)),
    "dilated valid": lambda x: conv((2, 3), padding="valid", dilation=(3, 5))(conv(3, 2, padding="valid")(x)),
    "even kernels": lambda x: conv(4, 2)(conv(2)(x)),
    "strides beyond even kernels": lambda x: conv((4, 2), (3, 3))(conv((2, 6))(x)),
    "depthwise dilated": lambda x: layers.DepthwiseConv2D(3, dilation_rate=(2, 3), padding="same")(x),
    "separable": lambda x: layers.SeparableConv2D(2, (5, 3), strides=2, padding="same")(x),
    "separable dilated": lambda x: layers.SeparableConv2D(2, (2, 3), dilation_rate=(3, 2), padding="same")(x),
    "grouped": lambda x: layers.Conv2D(4, 3, groups=2)(layers.Conv2D(4, (1, 3), strides=3)(x)),
    "pooling": lambda x: layers.AveragePooling2D((3, 2), (2, 3), padding="same")(conv(padding="valid")(x)),
    "padding and cropping": lambda x: conv(5, 3, padding="valid")(
        layers.Cropping2D(((3, 1), (2, 4)))(layers.ZeroPadding2D(((2, 3), (1, 5)))(x))
    ),
    "branches of three depths": lambda x: layers.Average()([x, conv(dilation=2)(x), conv((3, 5))(conv(dilation=2)(x))]),
    "concatenated": lambda x: conv(padding="valid")(layers.Concatenate()([conv((1, 7), 2)(x), conv((7, 1), 2)(x)])),
    "unaligned": lambda x: layers.Add()([conv(2)(x), conv((3, 6))(x)]),
    "transposed with output padding": lambda x: layers.Conv2DTranspose(
        2, (3, 4), strides=(2, 3), padding="same", output_padding=(1, 1), use_bias=False
    )(conv(3, 2)(x)),
    "transposed same": lambda x: layers.Conv2DTranspose(2, (3, 2), strides=2, padding="same")(x),
    "transposed valid": lambda x: layers.Conv2DTranspose(2, (5, 4), strides=(2, 3), padding="valid")(x),
    "up-sampling nearest": lambda x: layers.UpSampling2D((2, 3))(x),
    "up-sampling bilinear": lambda x: layers.UpSampling2D((2, 3), interpolation="bilinear")(x),
    "resizing": lambda x: layers.Resizing(30, 70)(x),
    "bicubic on a pixel": lambda x: layers.UpSampling2D((3, 1), interpolation="bicubic")(x),
    "convolution behind": lambda x: conv()(layers.Conv2DTranspose(2, 4, strides=2, padding="same")(x)),
    "bicubic": lambda x: conv()(layers.UpSampling2D(2, interpolation="bicubic")(conv(3, 2)(x))),
    "functions": lambda x: ops.depthwise_conv(
        ops.average_pool(ops.conv(x, np.ones((3, 2, 2, 2)), 2, "same"), 2, 1, "same"), np.ones((2, 3, 2, 1)), 1, "same"
    ),
    "resized": lambda x: conv()(ops.image.resize(x, (30, 76), interpolation="nearest")),
}
EXACT = LAYERS | {
    "patch merging": lambda x: conv()(
        ops.concatenate([x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]], axis=-1)
    ),
    "means of patches": lambda x: conv()(ops.mean(ops.reshape(conv()(x), (-1, 10, 4, 12, 4, 2)), axis=(2, 4))),
    "shared at two resolutions": shared,
    "frames of two depths": lambda x: ops.squeeze(
        layers.Conv3D(2, (2, 3, 3), use_bias=False)(ops.stack([x, conv(5)(x)], axis=1)), 1
    ),
    "up-projected": lambda x: conv()(up_projected(x)),
    "up-projected alone": up_projected,
    "woven with zeros": lambda x: woven(conv()(x), ops.zeros_like(x), 1),
    "woven with its own columns": lambda x: woven(x[:, :, ::2], conv()(x)[:, :, 1::2], 2),
    "one of two depths": lambda x: ops.stack([x, conv()(x)], axis=1)[:, 0],
    "one below the other": lambda x: conv()(ops.concatenate([x, conv(5)(x)], axis=1)),
    "the narrow channels of a join": lambda x: conv()(ops.concatenate([conv(5)(x), x], -1)[..., 2:]),
    "groups of a join": lambda x: layers.Conv2D(4, 1, groups=2)(ops.concatenate([conv(5)(x), x], -1))[..., 2:],
    "depths of a join": lambda x: layers.DepthwiseConv2D(1, depth_multiplier=2)(
        ops.concatenate([conv(5)(x), x], -1)
    )[..., 4:],
    "shuffled channels": lambda x: conv()(shuffled(x)[..., ::2]),
    "a model for each row": lambda x: layers.TimeDistributed(
        keras.Sequential([layers.Conv1D(2, 3, 2, use_bias=False), layers.AveragePooling1D(2, 1), layers.Conv1D(2, 2)])
    )(conv()(x)),
    "from the end backwards": lambda x: conv((2, 3))(x[:, -3:4:-2]),
    "sides that the shape gives": lambda x: conv()(x[:, ops.shape(x)[1] // 4 : -ops.shape(x)[1] // 4]),
    "crop": lambda x: conv(padding="valid")(x[:, 4:]),
    "crop of both ends": lambda x: conv()(x[:, 2:-3, 1:]),
    "strided slice": lambda x: conv()(conv()(x)[:, 1::2, ::3]),
    "reversed slice": lambda x: conv((3, 2))(x[:, ::-1]),
    "ellipsis": lambda x: conv()(x[..., 1:30, :]),
    "ops.slice": lambda x: conv()(ops.slice(x, (0, 2, 3, 0), (1, 20, 30, 2))),
    "space to depth": lambda x: conv()(space_to_depth(conv()(x))),
    "space to depth alone": lambda x: space_to_depth(conv()(x)),
    "depthwise behind it": lambda x: layers.DepthwiseConv2D(3, padding="same", use_bias=False)(space_to_depth(x)),
    "pixel shuffle": lambda x: conv()(pixel_shuffle(conv(filters=8)(x))),
    "windows": lambda x: conv()(windowed(conv()(x), window_mean)),
    "shifted windows": lambda x: ops.roll(windowed(ops.roll(x, (-2, -1), (1, 2)), window_mean), (2, 1), (1, 2)),
    "patches to tokens and back": lambda x: conv()(
        layers.Reshape((10, 12, 2))(layers.Dense(2, use_bias=False)(layers.Reshape((120, 2))(conv(4, 4)(x))))
    ),
    "a class token": lambda x: conv()(
        ops.reshape(ops.concatenate([np.ones((1, 1, 2)), ops.reshape(conv(4, 4)(x), (-1, 120, 2))], 1)[:, 1:],
                    (-1, 10, 12, 2))
    ),
    "matmul": lambda x: conv()(ops.matmul(conv()(x), KERNEL)),
    "einsum": lambda x: conv()(ops.einsum("bhwc,cd->bhwd", conv()(x), KERNEL)),
    "tensordot": lambda x: conv()(ops.tensordot(x, KERNEL, axes=1)),
    "rows of channels": lambda x: conv()(layers.Reshape((40, 48, 4))(layers.Reshape((-1, 4))(conv(filters=4)(x)))),
    "into the batch": lambda x: conv()(
        ops.reshape(ops.matmul(ops.reshape(conv()(x), (-1, 2)), KERNEL), (-1, 40, 48, 4))
    ),
    "reflected edges": lambda x: conv(padding="valid")(ops.pad(x, EDGES, "reflect")),
    "symmetric edges": lambda x: conv(3, 2, padding="valid")(ops.pad(conv()(x), EDGES, "symmetric")),
    "stack": lambda x: conv()(ops.mean(ops.stack([x, conv(5)(x)], axis=1), axis=1)),
    "unstack and stack": lambda x: conv()(ops.stack(ops.unstack(conv()(x), axis=1)[3:20], axis=1)),
    "moveaxis": lambda x: layers.Permute((2, 1, 3))(conv((1, 5))(ops.moveaxis(x, 1, 2))),
    "repeat": lambda x: conv()(ops.repeat(ops.repeat(conv(3, 2)(x), 2, axis=1), 3, axis=2)),
    "repeated by turns": lambda x: conv()(ops.repeat(conv(3, 2)(x), [1, 3] * 10, axis=1)),
    "tile": lambda x: conv()(ops.tile(conv()(x), (1, 2, 1, 1))),
    "extract_patches": lambda x: conv()(ops.image.extract_patches(x, 4)),
    "overlapping patches": lambda x: conv()(ops.image.extract_patches(x, (3, 5), strides=2, padding="same")),
    "patches put back": lambda x: conv()(unpatched(conv()(x))),
    "crop_images": lambda x: conv()(ops.image.crop_images(x, 1, 2, target_height=20, target_width=30)),
    "pad_images": lambda x: conv()(ops.image.pad_images(conv()(x), 1, 2, 3, 4)),
    "cropped to the aspect": lambda x: conv()(layers.Resizing(20, 20, crop_to_aspect_ratio=True)(x)),
    "padded to the aspect": lambda x: conv()(layers.Resizing(30, 20, pad_to_aspect_ratio=True)(x)),
    "split": lambda x: conv()(ops.split(conv()(x), [5, 20], axis=2)[1]),
    "glu": lambda x: conv()(ops.glu(conv()(x))),
    "take": lambda x: conv()(ops.take(x, [3, 4, 9, 1], axis=1)),
    "flip": lambda x: conv((3, 2))(ops.flip(conv((2, 3))(x), axis=2)),
    "joined with its mirror image": lambda x: ops.add(x, ops.flip(conv()(x), axis=1)),
    "cells of a grid": lambda x: cells(conv(3, 3)(x)),
    "dilated by way of the batch": lambda x: batch_to_space(conv()(space_to_batch(x))),
    "hstack": lambda x: conv()(ops.hstack([conv()(x), conv()(x)[:, :4]])),
    "roll": lambda x: conv()(ops.roll(x, (3, 5), axis=(1, 2))),
    "halves swapped": lambda x: conv()(ops.concatenate([x[:, 20:], x[:, :20]], axis=1)),
    "rot90": lambda x: ops.rot90(conv((1, 3))(ops.rot90(conv((3, 2))(x), axes=(1, 2))), k=3, axes=(1, 2)),
    "blur": lambda x: ops.image.gaussian_blur(conv()(x), (5, 3), (1.0, 1.0)),
    "U-Net": decoder,
    "down and up by 4": lambda x: conv()(layers.UpSampling2D(4)(layers.AveragePooling2D(4)(x))),
    "bilinear behind a stride": lambda x: conv()(layers.UpSampling2D(2, interpolation="bilinear")(conv(3, 2)(x))),
    "transposed with output padding alone": lambda x: layers.Conv2DTranspose(2, 3, 2, "same", output_padding=1)(x),
    "transposed with gaps": lambda x: conv()(layers.Conv2DTranspose(2, 2, strides=3, use_bias=False)(conv(3, 2)(x))),
}  # fmt: skip
if hasattr(layers, "AdaptiveAveragePooling2D"):  # newer than the lowest Keras that pyproject.toml names
    LAYERS["adaptive pooling"] = EXACT["adaptive pooling"] = lambda x: layers.AdaptiveAveragePooling2D((9, 22))(x)


@pytest.fixture
def in_float64():
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx("float32")


@pytest.mark.parametrize("name", EXACT)
def test_gradients_of_what_people_write(name, in_float64):
    image = keras.Input((41, 58, 2) if name in LAYERS else (40, 48, 2))
    model = positive_weights(keras.Model(image, EXACT[name](image)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = receptive_field(model)
    rows, columns = found.grid
    assert (
        (found.exact or name == "shifted windows") and not found.whole_image and found.grid == model.output_shape[1:3]
    )
    widths = []
    for y, x in [(rows // 2 + step, columns // 2 - step) for step in (0, 1, -1)]:  # the phases of strides up to 3
        region, seen = found.region(y, x, clip=True), support(model, (y, x)) or ((0, 0), (0, 0))
        assert (region.start, region.stop) == seen or 0 in region.size == np.subtract(*seen).min(), (y, x)
        widths.append(region.size[1])
    assert max(widths) == found.size[1] if name in PERIODIC else max(widths) <= found.size[1]
    for feature in [(0, 0), (rows - 1, columns - 1), (0, columns - 1)]:
        seen = support(model, feature)
        if seen is not None:
            region = found.region(*feature, clip=True)
            assert all(a <= b for a, b in zip(region.start, seen[0], strict=True)), feature
            assert all(a >= b for a, b in zip(region.stop, seen[1], strict=True)), feature


def ask(build, *shape, **settings):
    image = keras.Input(shape or (40, 48, 2))
    return receptive_field(keras.Model(image, build(image)), **settings)


def test_sizes_by_hand():
    found = ask(lambda x: conv(padding="valid")(x[:, 4:]))
    assert (found.region(17, 0).start[0], found.region(17, 0).stop[0]) == (21, 24)
    found = ask(lambda x: conv()(pixel_shuffle(conv(filters=8)(x))))
    assert (found.region(20, 24).start, found.region(20, 24).stop) == ((8, 10), (12, 14))
    found = ask(lambda x: conv()(ops.image.extract_patches(x, 4)))
    assert (found.size, found.stride) == ((12, 12), (4, 4))
    assert ask(lambda x: layers.UpSampling2D(20)(layers.AveragePooling2D(20)(x)), 40, 60, 1).size == (20, 20)
    found = ask(lambda x: ops.reshape(ops.reshape(conv()(x), (ops.shape(x)[0], 1920, 2)), (-1, 40, 48, 2)))
    assert (found.size, found.grid) == ((3, 3), (40, 48))
    found = ask(lambda x: ops.stack([x, conv()(x)], axis=1))
    assert found.region(0, 9, 9).size == (1, 1) and found.region(1, 9, 9).size == found.size == (3, 3)
    # A U-Net of three levels, two convolutions down and one up at each: 73 for all phases together.
    assert ask(lambda x: decoder(x, 3, 2), 160, 176, 2).size == (68, 68)


def test_tokens_of_shifted_windows_are_as_far_apart_as_their_patches():
    for side, shift in ((7, 3), (4, 1), (2, 1)):  # a window rises by its side, and so do all of its tokens together
        found = ask(
            lambda x, side=side, shift=shift: ops.roll(
                windowed(ops.roll(conv(2, 2)(x), (-shift, -shift), (1, 2)), window_mean, side), (shift, shift), (1, 2)
            ),
            56, 112, 1,
        )  # fmt: skip
        assert found.stride == (2, 2) and found.region(14, 29).size == (2 * side, 2 * side)


def test_a_row_of_an_image_is_a_sequence_of_its_columns():
    line = layers.Conv1D(2, 3, padding="same")
    for index in (5, -35):
        found = ask(lambda x, index=index: line(conv()(x)[:, index]))
        assert found.region(0, 20).start == (4, 18) and found.region(0, 20).stop == (7, 23)
    assert found.grid == (None, 48)


def test_tokens_are_asked_with_one_number_and_pixels_within_patches_with_four():
    found = ask(lambda x: layers.Reshape((-1, 2))(conv(4, 4)(x)))
    assert (found.region(14).start, found.region(14).stop, found.grid) == ((4, 8), (8, 12), (None, None))
    found = ask(lambda x: ops.reshape(x, (-1, 10, 4, 12, 4, 2)))
    assert found.region(2, 3, 5, 1).start == (11, 21) and found.size == (1, 1)


def test_a_reshape_that_cuts_across_rows_is_a_bound_and_says_so(in_float64):
    image = keras.Input((40, 48, 2))
    model = positive_weights(keras.Model(image, conv()(layers.Reshape((30, 32, 4))(conv()(image)))))
    found = receptive_field(model)
    assert not found.exact and "size=at most (" in repr(found) and "at most" in found._repr_html_()
    assert table(model, macs=False)["note"].iloc[-1] == "sizes are at most these"
    region, seen = found.region(14, 20, clip=True), support(model, (14, 20))
    assert region.start[0] <= seen[0][0] and region.stop[0] >= seen[1][0] and region.stop[1] >= seen[1][1]


@pytest.mark.parametrize("settings", [{"interpolation": "area"}, {"antialias": True}, {"interpolation": "lanczos3"}])
def test_no_box_of_a_resize_is_too_small_where_rounding_decides(settings):
    image = keras.Input((13, 15, 1))
    found = receptive_field(keras.Model(image, ops.image.resize(image, (9, 32), **settings)))
    assert not found.exact
    photos = np.random.default_rng(0).uniform(0.2, 0.8, (13 * 15 + 1, 13, 15, 1)).astype("float32")
    photos[:] = photos[0]
    photos[1:].reshape(13 * 15, -1)[np.diag_indices(13 * 15)] += 1000
    resized = np.asarray(ops.image.resize(photos, (9, 32), **settings))[..., 0]
    seen = np.abs(resized[1:] - resized[0]) > 1e-5
    for feature in np.ndindex(9, 32):
        outside = seen[(slice(None), *feature)].reshape(13, 15).copy()
        outside[found.region(*feature, clip=True).slices] = False
        assert not outside.any(), feature
    assert ask(lambda x: ops.image.resize(x, (20, 12), interpolation="area")).size == (2, 4)


def test_where_rounding_decides_which_pixel_is_nearest_both_are_seen():
    image = keras.Input((41, 58, 2))
    model = keras.Model(image, ops.image.resize(image, (30, 77), interpolation="nearest"))
    found, seen = receptive_field(model), support(model, (14, 38), dtype="float32")
    assert not found.exact and found.size == (1, 2)
    assert (found.region(14, 38).start[1], found.region(14, 38).stop[1]) == (28, 30) and seen[0][1] in (28, 29)
    assert found.region(14, 37).size == (1, 1)


def test_a_layer_along_a_mixed_axis_refuses_with_the_mixing_layers_name():
    def build(x, late):
        x = layers.Permute((3, 1, 2))(layers.Dense(40, name="rows")(layers.Permute((2, 3, 1))(conv()(x))))
        return conv()(x) if late else x

    found = ask(lambda x: build(x, False))
    assert found.whole_image and found.size == (3, 3)
    with pytest.raises(ValueError, match="no grid of features left, as 'rows' mixes all positions"):
        found.region(3, 3)
    image = keras.Input((40, 48, 2))
    model = keras.Model(image, build(image, True))
    lost = receptive_field(model)
    for refused in (lambda: lost.size, lambda: lost.center(3, 3), lambda: lost.region(3, 3)):
        with pytest.raises(ValueError, match="'rows' mixes all positions of an axis"):
            refused()
    assert "'rows'" in table(model)["note"].iloc[-1] and "'rows'" in repr(lost) and "rows" in lost._repr_html_()


def test_a_subclass_with_its_own_call_is_not_taken_for_its_base():
    class Mirrored(layers.Conv2D):
        def call(self, x):
            return ops.flip(super().call(x), axis=1)

    found = ask(lambda x: Mirrored(2, 3, name="mirrored")(x), unsupported="ignore")
    assert found.lost is None or "'mirrored'" in found.lost


def test_a_convolution_with_a_state_grows_with_every_frame():
    found = ask(lambda x: layers.ConvLSTM2D(2, (3, 5), padding="same", return_sequences=True)(x), 4, 20, 24, 2)
    assert found.size == (1, 9, 17) and found.whole_image  # 1 + 4 frames of (2, 4) pixels; every frame matters
    both = layers.Bidirectional(layers.ConvLSTM2D(2, (3, 5), padding="same", return_sequences=True))
    assert ask(both, 4, 20, 24, 2).size == (1, 9, 17)

    def sliced(x):
        joined = layers.Concatenate()([layers.TimeDistributed(conv(5))(x), x])
        return layers.ConvLSTM2D(3, 1, return_sequences=True)(joined)[..., 2:]

    assert ask(sliced, 4, 20, 24, 2).size == (1, 5, 5)  # each of its channels reads all of the join's


@pytest.mark.parametrize("frames", [True, False])
def test_frames_with_channels_first_see_what_frames_with_channels_last_see(frames):
    def size(wrap, data_format):
        layer = wrap(lambda kind, *more, **named: kind(2, *more, padding="same", data_format=data_format, **named))
        return ask(layer, *((4, 2, 20, 24) if data_format == "channels_first" else (4, 20, 24, 2))).size

    for wrap, expected in (
        (lambda made: made(layers.ConvLSTM2D, (3, 5), return_sequences=frames), (1, 9, 17)),  # as counted above
        (lambda made: layers.Bidirectional(made(layers.ConvLSTM2D, (3, 5), return_sequences=frames)), (1, 9, 17)),
        (lambda made: layers.TimeDistributed(made(layers.Conv2D, (3, 5))), (1, 3, 5)),
    ):
        assert size(wrap, "channels_last") == size(wrap, "channels_first") == expected


def test_flatten_puts_the_channels_last_first():
    # (20, 24, 2) taken for channels, rows, columns is written out as rows, columns, channels: (24, 2, 20).
    found = ask(
        lambda x: layers.Reshape((24, 2, 20))(layers.Flatten(data_format="channels_first")(conv(1)(x))), 20, 24, 2
    )
    assert found.exact and found.region(5, 3).start == (5, 3) and found.size == (1, 1)


def test_frames_in_the_batch_are_frames_again():
    def build(x):
        return ops.reshape(conv()(ops.reshape(x, (-1, 20, 24, 2))), (-1, 5, 20, 24, 2))

    found = ask(build, 5, 20, 24, 2)
    assert found.size == (1, 3, 3) and found.grid == (5, 20, 24) and found.region(2, 3, 4).start == (2, 2, 3)


class Pyramid(layers.Layer):
    """Gives two grids."""

    def __init__(self):
        super().__init__(name="pyramid")
        self.fine, self.coarse = conv(3, 2), conv(3, 2)

    def call(self, x):
        x = self.fine(x)
        return x, self.coarse(x)


def test_the_tensor_that_is_asked_for_is_answered():
    assert ask(lambda x: Pyramid()(x)[0]).size == (3, 3)
    assert ask(lambda x: Pyramid()(x)[1]).size == (7, 7)
    assert ask(lambda x: Pyramid()(x)[1], layer="pyramid", output=0).size == (3, 3)
    assert ask(lambda x: ops.split(x, 2, axis=1)[1]).region(0, 0).start == (20, 0)
    image = keras.Input((40, 48, 2))
    model = keras.Model(image, Pyramid()(image))
    assert receptive_field(model, output=1).size == (7, 7)
    with pytest.raises(ValueError, match="'pyramid' has 2 outputs that see different pixels; choose one with output="):
        receptive_field(model, "pyramid")


def test_input_sizes_of_every_rank_and_layout():
    line = keras.Sequential([keras.Input((None, 3)), layers.Conv1D(2, 3, strides=2, padding="same")])
    for size in (100, np.array([100])):
        assert receptive_field(line, input_size=size).padding == (0,)
    assert receptive_field(line, input_size=np.int64(100)).padding == (0,) and receptive_field(
        line, input_size=(101,)
    ).padding == (1,)
    cube = keras.Sequential([keras.Input((None, None, None, 1)), layers.Conv3D(2, 3, strides=2, padding="same")])
    assert receptive_field(cube, input_size=16).input_size == (16, 16, 16)
    assert receptive_field(cube, input_size=(8, 16, 17)).padding == (0, 0, 1)
    unbuilt = keras.Sequential([layers.Conv1D(2, 3, strides=2, padding="same")])
    assert receptive_field(unbuilt, input_size=100).padding == (0,)
    with pytest.raises(ValueError, match=r"input_size must have 3 entries .*got \(8, 16\)"):
        receptive_field(cube, input_size=(8, 16))
    image = keras.Input((3, 40, 56))
    turned = keras.Model(image, conv((3, 5))(layers.Permute((2, 3, 1))(image)))
    assert (receptive_field(turned).grid, receptive_field(turned).size) == ((40, 56), (3, 5))
    assert receptive_field(turned, input_size=(20, 30)).grid == (20, 30)


@pytest.mark.parametrize(
    "channel",
    [layers.Reshape((20, 24, 1)), lambda x: ops.expand_dims(x, -1), layers.Embedding(256, 3), lambda x: x[..., None]],
)
def test_a_grey_image_without_a_channel_axis_has_rows_and_columns(channel):
    found = ask(lambda x: conv((3, 5), 2)(channel(x)), 20, 24)
    assert (found.size, found.stride, found.input_size, found.grid) == ((3, 5), (2, 2), (20, 24), (10, 12))
    image = keras.Input((20, 24))
    assert receptive_field(keras.Model(image, conv()(channel(image))), input_size=(20, 24)).input_size == (20, 24)
    assert found.region(2, 3, clip=True).start == (4, 5)  # SAME pads rows by 0 and 1, columns by 1 and 2


def test_a_sequence_whose_features_get_an_axis_of_their_own_stays_one():
    found = ask(lambda x: layers.Conv1D(2, 3)(ops.squeeze(ops.expand_dims(x, -1), -1)), 20, 4)
    assert (found.size, found.input_size) == ((3,), (20,))


def test_inputs_of_one_size_and_other_channels_are_one_grid():
    photo, depth = keras.Input((None, None, 3)), keras.Input((None, None, 1))
    model = keras.Model([photo, depth], conv(3, 2)(layers.Concatenate()([photo, depth])))
    assert receptive_field(model, input_size=(20, 30)).grid == (10, 15)


class Own(keras.Model):
    """A subclassed model whose call computes with the batch."""

    def __init__(self):
        super().__init__()
        self.conv = conv(3, 2)

    def call(self, x):
        batch = x.shape[0] * 1
        return ops.reshape(self.conv(x), (batch, 14, 14, 2))


def test_a_subclassed_model_of_one_channel_that_computes_with_its_batch():
    model = Own()
    model(np.zeros((1, 28, 28, 1)))
    assert receptive_field(model).size == (3, 3) and receptive_field(model, input_size=28).grid == (14, 14)


def test_many_conflicts_are_summed_up():
    def build(x):
        for _ in range(12):
            x = layers.Add()([x, layers.Conv2D(2, 2, padding="same")(x)])
        return x

    found = ask(build)
    assert len(found.conflicts) == 24 and len(repr(found)) < 600 and "and 21 more conflicts" in repr(found)
