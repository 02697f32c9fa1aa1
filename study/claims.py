"""The studies' printed numbers, and what code that trains nothing says of them: costs by layer, heads, whole counts.

``python -m study claims`` writes results/claims.json, which the tables of docs/studies.md read.
"""

# Study A: FLOPs by layer. Of the 23 rows that it prints of EfficientNetB0 these six came to us.
BASELINE = {
    "conv2d": 346_816_512, "conv2d_1": 3_633_610_752, "conv2d_2": 429_981_696, "dense": 5_537_792, "classifier": 2_176,
}  # fmt: skip
B0 = {
    "stem_conv": 21_676_032, "block1a_dwconv": 7_225_344, "block1a_project_conv": 12_845_056,
    "block2a_expand_conv": 38_535_168, "block2a_dwconv": 5_419_008, "block4a_dwconv": 846_720,
}  # fmt: skip
# Study B: the ten most expensive layers of MobileNetV2; the last seven tie.
MOBILENET = {"Conv_1": 40_140_800, "block_1_expand": 38_535_168, "block_16_project": 30_105_600} | dict.fromkeys(
    ("Conv1", "block_2_expand", "block_2_project", "block_3_expand", "block_11_expand", "block_11_project",
     "block_12_expand"), 21_676_032,
)  # fmt: skip
# Study B: precision, recall and F1 by class on its test photos.
CLASSES = {
    "dress": (0.73, 0.73, 0.73), "hat": (0.90, 0.75, 0.82), "longsleeve": (0.82, 0.81, 0.81),
    "outwear": (0.75, 0.87, 0.80), "pants": (0.88, 1.00, 0.93), "shirt": (0.67, 0.54, 0.60),
    "shoes": (1.00, 0.99, 0.99), "shorts": (0.96, 0.77, 0.85), "skirt": (1.00, 0.75, 0.86),
    "t-shirt": (0.83, 0.92, 0.87),
}  # fmt: skip


def measure():
    """The metrics of results/claims.json; half a minute, no photos.

    Returns:
        dict: baseline, b0 and mobilenet (rows of layer, published, flops), heads (candidates for EfficientNetB0's),
        squeeze_excite_macs, backbone_macs (without them), classes (rows of class, precision, recall, f1).
    """
    import keras

    from utils import flops, models

    def rows(report, published):
        counted = report.to_frame().set_index("path")["flops"]
        return [{"layer": name, "published": value, "flops": int(counted[name])} for name, value in published.items()]

    b0 = flops.count(models.transfer("efficientnet_b0", 17, weights=None))
    body = keras.applications.EfficientNetB0(weights=None, include_top=False, input_shape=(224, 224, 3))
    frame = flops.count(body).to_frame()
    gates = int(frame.loc[frame["path"].str.contains("_se_(?:reduce|expand)"), "macs"].sum())
    backbone = int(frame["macs"].sum()) - gates
    heads = []
    for words, layers in (
        ("flatten, 32, 128, 17", (keras.layers.Flatten(), 32, 128, 17)),
        ("global pooling, 1536, 32, 17", (keras.layers.GlobalAveragePooling2D(), 1536, 32, 17)),
    ):
        x = layers[0](body.output)
        for units in layers[1:]:
            x = keras.layers.Dense(units)(x)
        whole = flops.count(keras.Model(body.input, x))
        heads.append({
            "head": words, "params": int(whole.total_params), "flops_without_gates": 2 * (whole.total_macs - gates),
        })  # fmt: skip
    return {
        "baseline": rows(flops.count(models.baseline_cnn(17)), BASELINE), "b0": rows(b0, B0),
        "mobilenet": rows(flops.count(models.transfer("mobilenet_v2", 10, weights=None)), MOBILENET),
        "squeeze_excite_macs": gates, "backbone_macs": backbone, "heads": heads,
        "classes": [
            {"class": name, "precision": p, "recall": r, "f1": f} for name, (p, r, f) in CLASSES.items()
        ],
    }  # fmt: skip
