"""The report of a count: rows, tables, text."""

import keras
import pytest
from test_flops import build, check_sums

from utils import flops

L = keras.layers


@pytest.fixture(scope="module")
def mobilenet():
    return flops.count(keras.applications.MobileNetV2(weights=None, classes=10))


def test_study_b_ten_layers_with_the_tie_shown(mobilenet):
    top = mobilenet.top(10)
    assert list(zip(top["rank"], top["path"], top["flops"], strict=True))[:3] == [
        ("1", "Conv_1", 40_140_800),
        ("2", "block_1_expand", 38_535_168),
        ("3", "block_16_project", 30_105_600),
    ]
    tie = top.iloc[3:]
    assert set(tie["rank"]) == {"4="} and set(tie["flops"]) == {21_676_032} and len(tie) == 9
    assert {"Conv1", "block_2_expand", "block_2_project", "block_3_expand", "block_11_expand"} <= set(tie["path"])
    assert (mobilenet.total_macs, mobilenet.total_params) == (299_507_072, 2_270_794)
    assert len(mobilenet.top(3)) == 3 and len(mobilenet.top(4)) == 12
    assert top["cumulative_share"].iloc[-1] == pytest.approx(top["macs"].sum() / mobilenet.total_macs)


def test_rows_describe_their_layers(mobilenet):
    row = next(row for row in mobilenet.rows if row.path == "Conv1")
    assert (row.kernel, row.strides, row.filters, row.type) == ((3, 3), (2, 2), 32, "Conv2D")
    assert row.input_shapes == ((1, 224, 224, 3),) and row.output_shapes == ((1, 112, 112, 32),)
    assert (row.params, row.weight_bytes, row.activation_bytes) == (864, 864 * 4, 112 * 112 * 32 * 4)
    frame = mobilenet.to_frame()
    assert frame.loc[row.index, "input_shape"] == (1, 224, 224, 3) and frame.index.name == "call"
    assert str(frame["macs"].dtype) == "Int64"
    assert flops.count(build((10, 8), L.LSTM(16))).rows[-1].filters == 16
    row = flops.count(build((5, 2, 9, 7), L.ConvLSTM2D(4, 3, strides=2, data_format="channels_first"))).rows[-1]
    assert (row.kernel, row.strides, row.filters, row.channels_first) == ((3, 3), (2, 2), 4, True)


@pytest.mark.parametrize("dtype, stored, given", [("float16", 2, 2), ("mixed_bfloat16", 4, 2), ("float32", 4, 4)])
def test_bytes_follow_the_dtype(dtype, stored, given):
    report = flops.count(build((8, 8, 3), L.Conv2D(4, 3, dtype=dtype)))
    assert report.total_weight_bytes == stored * report.total_params
    assert report.rows[-1].activation_bytes == given * 6 * 6 * 4
    assert [flops.itemsize(name) for name in ("bool", "uint8", "int64", "bfloat16", "float8_e4m3fn")] == [1, 1, 8, 2, 1]


class Twice(keras.Layer):
    """Two dense layers: a layer of one's own that hands on what the second one gave."""

    def __init__(self):
        super().__init__()
        self.dense, self.other = L.Dense(5), L.Dense(7)

    def call(self, x):
        return self.other(self.dense(x))

    def compute_output_shape(self, shape):
        return (*shape[:-1], 7)


def test_what_is_handed_on_is_no_activation_of_its_own():
    """By hand, 4 bytes each: the input, then what each layer inside gives, whatever wraps it."""
    for layer, shape, wanted in (
        (Twice(), (6,), 6 + 5 + 7),
        (L.TimeDistributed(Twice()), (3, 6), 3 * (6 + 5 + 7)),
        (L.TimeDistributed(L.TimeDistributed(L.Dense(5))), (2, 3, 6), 6 * 6 + 6 * 5),
        (L.SpectralNormalization(L.Dense(5)), (6,), 6 + 5),
        (L.Bidirectional(L.LSTM(4)), (3, 6), 18 + 4 + 4 + 8),  # joined, that is new
        (L.Bidirectional(L.LSTM(4), merge_mode=None), (3, 6), 18 + 4 + 4),
        (L.Bidirectional(L.LSTM(4, return_state=True), merge_mode="sum"), (3, 6), 18 + 2 * 12 + 4),
    ):
        report = flops.count(build(shape, layer), unsupported="raise")
        assert report.total_activation_bytes == 4 * wanted, layer.name


def test_tables_and_text(mobilenet):
    blocks, types = mobilenet.by_block(), mobilenet.by_type()
    assert list(blocks.index)[:2] == ["input", "Conv1"] and blocks.loc["block_1", "calls"] == 9
    expected = sum(row.macs for row in mobilenet.rows if row.path.startswith("block_16_"))
    assert blocks.loc["block_16", "macs"] == expected
    assert types.index[0] == "Conv2D" and types.loc["DepthwiseConv2D", "macs"] == 20_716_416
    check_sums(mobilenet)
    for refused in (lambda: mobilenet.by_block(0), lambda: mobilenet.top(0)):
        with pytest.raises(ValueError, match=r"(depth|n) must be at least 1, got 0"):
            refused()
    text, html = repr(mobilenet), mobilenet._repr_html_()
    assert "299,507,072 MACs" in text and "599,014,144 FLOPs" in text and "batch 1" in text and "'exact'" in text
    assert "<table" in html and "Conv_1" in html and "299,507,072" in html
    nothing = flops.count(build((4, 4, 3), L.Flatten()))
    assert nothing.total_macs == 0 and len(nothing.top(5)) == 0 and "0 MACs" in nothing._repr_html_()
    check_sums(nothing)


def test_resolutions_sum_up_what_stands_between_two_halvings():
    image = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, padding="same")(image)
    gate = L.Dense(4)(L.GlobalAveragePooling2D(keepdims=True)(x))
    x = L.Conv2D(6, 2, strides=2)(L.Multiply()([x, gate]))
    report = flops.count(keras.Model(image, L.Dense(5)(L.Flatten()(x))))
    found = report.by_resolution()
    assert found["side"].tolist() == [8, 4] and found["channels"].tolist() == [4, 6]
    assert found["layers"].tolist() == [2, 1]  # the gate on a grid of one cell belongs to the first
    assert found["macs"].tolist() == [64 * 4 * 27 + 4 * 4, 16 * 6 * 16]
    assert report.total_macs - found["macs"].sum() == 16 * 6 * 5
    quarters = keras.ops.split(image := keras.Input((8, 8, 8)), 4, axis=-1)  # four outputs are no grid of four sides
    assert flops.count(keras.Model(image, quarters)).by_resolution()["side"].tolist() == [8]
    assert flops.count(build((8,), L.Dense(2))).by_resolution().empty


def test_resolutions_of_a_channels_first_model():
    x = keras.Input((3, 32, 32))
    y = L.Conv2D(16, 3, padding="same", data_format="channels_first")(x)
    y = L.ReLU()(L.BatchNormalization(axis=1)(y))
    y = L.Conv2D(64, 3, strides=2, padding="same", data_format="channels_first")(y)
    frame = flops.count(keras.Model(x, L.ReLU()(y))).by_resolution()
    assert frame["side"].tolist() == [32, 16] and frame["channels"].tolist() == [16, 64]
    image = keras.Input((32, 32, 3))
    turned = keras.Model(image, keras.Model(x, y)(L.Permute((3, 1, 2))(image)))
    assert flops.count(turned).by_resolution()["side"].tolist() == [32, 16]


def test_an_unknown_input_size_is_asked_for():
    model = keras.applications.MobileNet(weights=None, include_top=False, alpha=0.25)
    with pytest.raises(ValueError, match=r"unknown dimensions.*pass input_shape, for example \(224, 224, 3\)"):
        flops.count(model)
    assert flops.count(model, (96, 64, 3)).total_macs > 0
