"""Backbones of keras-hub, small and with random weights, against the pixels that move their features."""

import warnings

import keras
import numpy as np
import pytest

from utils.receptive_field import receptive_field, table

hub = pytest.importorskip("keras_hub")
from keras_hub.src.models.vae.vae_backbone import VAEBackbone  # noqa: E402 (keras_hub.models does not name it)


def resnet(kind="basic_block", before=False, shape=(64, 80, 3), stages=2):
    return hub.models.ResNetBackbone(
        [64], [3], [64] * stages, [1] * stages, [1, 2, 2, 2][:stages], kind,
        use_pre_activation=before, image_shape=shape,
    )  # fmt: skip


def mobilenet(squeeze=None):
    return hub.models.MobileNetBackbone(
        stackwise_expansion=[[16], [24]], stackwise_num_blocks=[1, 1], stackwise_num_filters=[[8], [16]],
        stackwise_kernel_size=[[3], [5]], stackwise_num_strides=[[2], [2]], stackwise_se_ratio=[[None], [squeeze]],
        stackwise_activation=[["relu"], ["hard_swish"]], stackwise_padding=[[1], [2]], output_num_filters=48,
        depthwise_filters=8, depthwise_stride=2, depthwise_residual=False, last_layer_filter=64,
        squeeze_and_excite=squeeze, input_num_filters=8, image_shape=(64, 96, 3),
    )  # fmt: skip


def mit(shape=(64, 64, 3)):
    return hub.models.MiTBackbone(
        [1, 1], 2, [1, 2], [2, 1], 0.1, [7, 3], [4, 2], hidden_dims=[8, 16], image_shape=shape
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


def cspnet():
    return hub.models.CSPNetBackbone(
        8, 3, 2, [1, 1], [1, 2], [8, 8], "dark_block", stage_type="csp", bottle_ratio=[0.5], expand_ratio=[2.0],
        output_strides=4, image_shape=(64, 80, 3),
    )  # fmt: skip


def retinanet(level):
    shape = (224, 256, 3)
    model = hub.models.RetinaNetBackbone(resnet(stages=4, shape=shape), 3, 5, use_p5=False, image_shape=shape)
    return keras.Model(model.input, model.pyramid_outputs[level])


LOCAL = {
    "MobileNet": mobilenet,
    "ResNet": resnet,
    "ResNetV2": lambda: resnet("bottleneck_block", True),
    "CSPNet": cspnet,
    "DenseNet": lambda: hub.models.DenseNetBackbone([2, 2], growth_rate=4, image_shape=(96, 112, 3)),
    "VGG": lambda: hub.models.VGGBackbone([1, 1], [4, 4], image_shape=(48, 64, 3)),
    "HGNetV2": hgnet,
    "EfficientNet": efficientnet,
    "Swin": lambda: hub.models.SwinTransformerBackbone(
        image_shape=(64, 96, 3), embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2
    ),
    "ViTDet": vit_det,
    "RetinaNet's finest level": lambda: retinanet("P3"),
    "RetinaNet's coarsest level": lambda: retinanet("P5"),
}


def moved(model, feature, size, masks):
    """For each mask (rows, columns): whether the feature changes with the pixels in it."""
    image = np.random.default_rng(0).uniform(0.5, 1.5, (*size, 3)).astype("float32")
    found = np.zeros(len(masks), bool)
    for times in (-100, 1e6):  # attention looks at directions, and the edges of many kernels weigh little
        images = np.stack([image, *(np.where(mask[..., None], image * times, image) for mask in masks)])
        seen = np.asarray(model(images.astype("float32"), training=False))[(slice(None), *feature)]
        found |= [bool(np.abs(one - seen[0]).max() > 1e-6 * np.abs(seen[0]).max()) for one in seen[1:]]
    return found.tolist()


@pytest.mark.parametrize("name", LOCAL)
def test_local_backbones_see_what_moves_their_features(name):
    keras.utils.set_random_seed(0)
    model = LOCAL[name]()
    if isinstance(model.output, dict):
        model = keras.Model(model.input, list(model.output.values())[-1])
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.uniform(0.05, 0.2, variable.shape))
    size = (64, 80) if None in model.input_shape[1:] else model.input_shape[1:3]
    found = receptive_field(model, input_size=size, unsupported="raise")
    assert not found.whole_image and found.exact
    if None in found.grid:  # tokens
        features = [(40,), (model.output_shape[1] // 2,)]
    else:
        features = [tuple(count // 2 - back for count in found.grid) for back in (0, 1)] + [(0, found.grid[1] - 1)]
    for feature in features:
        region = found.region(*feature, clip=True)
        box = np.zeros(size, bool)
        box[region.slices] = True
        rows, columns = (np.arange(side) for side in size)
        edges = [box & (rows == at)[:, None] for at in (region.start[0], region.stop[0] - 1)]
        edges += [box & (columns == at) for at in (region.start[1], region.stop[1] - 1)]
        outside, *inside = moved(model, feature, size, [~box, *edges])
        assert not outside, feature
        assert all(inside) or feature[0] == 0, (feature, inside)


WHOLE = {
    "MiT": mit,
    "SegFormer": lambda: hub.models.SegFormerBackbone(mit(), 8),
    "VAE": lambda: VAEBackbone([32, 32], [1, 1], [32, 32], [1, 1], sampler_method="mode"),
    "ViTDet with global attention": lambda: vit_det([1]),
    "MobileNet with squeeze-and-excite": lambda: mobilenet(0.25),
    "ViT": lambda: hub.models.ViTBackbone((32, 48, 3), 8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_said_to_see_the_whole_image_is_moved_by_its_corners_everywhere(name):
    keras.utils.set_random_seed(0)
    model = WHOLE[name]()
    size = (32, 40) if None in model.input_shape[1:] else model.input_shape[1:3]
    found = receptive_field(model, input_size=size, output=0, unsupported="ignore")
    assert found.whole_image
    corners = np.zeros((2, *size), bool)
    corners[0, 0, 0] = corners[1, -1, -1] = True
    grid = keras.ops.shape(model(np.ones((1, *size, 3))))[1:-1]
    for feature in (tuple(count // 2 for count in grid), (0,) * len(grid), tuple(count - 1 for count in grid)):
        assert moved(model, feature, size, corners) == [True, True], feature


def test_a_model_of_square_images_says_so():
    found = receptive_field(mit((64, 96, 3)), output=0, unsupported="ignore")
    assert "does not run on one image of (64, 96); if it takes the root of a number of positions" in found.lost
    with pytest.raises(ValueError, match=r"was built for a square image: pass a square input_size$"):
        receptive_field(mit(), input_size=(64, 96), output=0)


def test_local_paths_and_pyramids_outputs_are_told_apart():
    vision = {"patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 16}
    for backbone in (hub.models.DeiTBackbone, hub.models.SigLIPVisionEncoder):
        assert receptive_field(backbone(image_shape=(32, 32, 3), **vision), unsupported="raise").whole_image
    found = receptive_field(WHOLE["ViT"]())
    assert found.whole_image and (found.size, found.stride, found.padding) == ((8, 8), (8, 8), (0, 0))
    encoder = resnet(stages=4, shape=(96, 96, 3))
    lab = hub.models.DeepLabV3Backbone(encoder, "P4", 8, [2, 3], low_level_feature_key="P2", projection_filters=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert receptive_field(lab, input_size=96).grid == (96, 96)
        assert len(table(lab, macs=False)) > 50
