"""Backbones of keras-hub, small and with random weights, against gradients where they are local."""

import warnings

import keras
import numpy as np
import pytest
from support_oracle import support

from utils.receptive_field import receptive_field, table

hub = pytest.importorskip("keras_hub")


def resnet(kind="basic_block", before=False, shape=(64, 80, 3), stages=2):
    return hub.models.ResNetBackbone(
        [64],
        [3],
        [64] * stages,
        [1] * stages,
        [1, 2, 2, 2][:stages],
        kind,
        use_pre_activation=before,
        image_shape=shape,
    )


def mobilenet(squeeze=None):
    return hub.models.MobileNetBackbone(
        stackwise_expansion=[[16], [24]], stackwise_num_blocks=[1, 1], stackwise_num_filters=[[8], [16]],
        stackwise_kernel_size=[[3], [5]], stackwise_num_strides=[[2], [2]], stackwise_se_ratio=[[None], [squeeze]],
        stackwise_activation=[["relu"], ["hard_swish"]], stackwise_padding=[[1], [2]], output_num_filters=48,
        depthwise_filters=8, depthwise_stride=2, depthwise_residual=False, last_layer_filter=64,
        squeeze_and_excite=squeeze, input_num_filters=8, image_shape=(64, 96, 3),
    )  # fmt: skip


def mit():  # keras-hub takes the root of the number of tokens as the side: squares only
    return hub.models.MiTBackbone(
        [1, 1], 2, [1, 2], [2, 1], 0.1, [7, 3], [4, 2], hidden_dims=[8, 16], image_shape=(64, 64, 3)
    )


def vit_det(global_layers=(), windows=2):
    return hub.models.ViTDetBackbone(
        hidden_size=8, num_layers=2, intermediate_dim=8, num_heads=2, image_shape=(64, 64, 3), patch_size=8,
        global_attention_layer_indices=list(global_layers), num_output_channels=8, window_size=windows,
    )  # fmt: skip


def hgnet():
    stages = [[8, 8, 8, 1, 2, 3], [8, 8, 8, 1, 2, 3]]
    return hub.models.HGNetV2Backbone(
        depths=[1, 1], embedding_size=8, hidden_sizes=[8, 8], stem_channels=[3, 8, 8], hidden_act="relu",
        use_learnable_affine_block=False, num_channels=3, stackwise_stage_filters=stages, image_shape=(64, 80, 3),
        apply_downsample=[False, True], use_lightweight_conv_block=[False, False],
    )  # fmt: skip


def efficientnet():
    return hub.models.EfficientNetBackbone(
        stackwise_width_coefficients=[0.25] * 2, stackwise_depth_coefficients=[1.0] * 2, stackwise_kernel_sizes=[3, 5],
        stackwise_num_repeats=[1, 1], stackwise_input_filters=[32, 16], stackwise_output_filters=[16, 24],
        stackwise_expansion_ratios=[1, 6], stackwise_strides=[1, 2], stackwise_squeeze_and_excite_ratios=[0, 0],
        stackwise_block_types=["v1", "v1"], image_shape=(64, 80, 3),
    )  # fmt: skip


LOCAL = {
    "MobileNet": mobilenet,
    "ResNet": resnet,
    "ResNetV2": lambda: resnet("bottleneck_block", True),
    "CSPNet": lambda: hub.models.CSPNetBackbone(
        8,
        3,
        2,
        [1, 1],
        [1, 2],
        [8, 8],
        "dark_block",
        stage_type="csp",
        bottle_ratio=[0.5],
        expand_ratio=[2.0],
        output_strides=4,
        image_shape=(64, 80, 3),
    ),
    "DenseNet": lambda: hub.models.DenseNetBackbone([2, 2], growth_rate=4, image_shape=(96, 112, 3)),
    "VGG": lambda: hub.models.VGGBackbone([1, 1], [4, 4], image_shape=(48, 64, 3)),
    "HGNetV2": hgnet,
    "EfficientNet": efficientnet,
    "Swin": lambda: hub.models.SwinTransformerBackbone(
        image_shape=(64, 96, 3), embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2
    ),
    "ViTDet": vit_det,
}


@pytest.mark.parametrize("name", LOCAL)
def test_local_backbones_see_what_their_gradients_reach(name):
    keras.utils.set_random_seed(0)
    model = LOCAL[name]()
    if isinstance(model.output, dict):
        model = keras.Model(model.input, list(model.output.values())[-1])
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.uniform(0.05, 0.2, variable.shape))
    size = None if None not in model.input_shape[1:] else (64, 80)
    found = receptive_field(model, input_size=size, unsupported="raise")
    assert not found.whole_image and found.exact
    picks = any(isinstance(layer, keras.layers.MaxPooling2D) for layer in model._flatten_layers())
    if None in found.grid:  # tokens
        features = [(40,), (model.output_shape[1] // 2,)]
    else:
        features = [tuple(count // 2 - back for count in found.grid) for back in (0, 1)] + [(0, found.grid[1] - 1)]
    for feature in features:
        seen, region = support(model, feature, dtype="float32", size=size), found.region(*feature, clip=True)
        assert all(a <= b for a, b in zip(region.start, seen[0], strict=True)), (feature, region, seen)
        assert all(a >= b for a, b in zip(region.stop, seen[1], strict=True)), (feature, region, seen)
        if feature[0] and not picks:  # maximum pooling hands its gradient to one pixel only
            assert (region.start, region.stop) == seen, feature


def test_attention_over_the_image_is_flagged_and_a_pyramids_outputs_are_told_apart():
    assert (
        receptive_field(vit_det([1])).whole_image and receptive_field(mit(), output=0, unsupported="ignore").whole_image
    )
    vision = {"patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 16}
    for mixing in (
        mobilenet(0.25),
        hub.models.DeiTBackbone(image_shape=(32, 32, 3), **vision),
        hub.models.SigLIPVisionEncoder(image_shape=(32, 32, 3), **vision),
    ):
        assert receptive_field(mixing, unsupported="raise").whole_image
    vit = hub.models.ViTBackbone((32, 48, 3), 8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8)
    found = receptive_field(vit)
    assert found.whole_image and (found.size, found.stride, found.padding) == ((8, 8), (8, 8), (0, 0))
    encoder = resnet(stages=4, shape=(96, 96, 3))
    lab = hub.models.DeepLabV3Backbone(encoder, "P4", 8, [2, 3], low_level_feature_key="P2", projection_filters=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert receptive_field(lab, input_size=96).grid == (96, 96)
        assert len(table(lab, macs=False)) > 50
