"""Small models of keras-hub with random weights: each built in seconds.

python tests/flops/hub_models.py      # count them all, on both backends -> results/hub.json; about five minutes
"""

import functools
import json
import os
import pathlib
import subprocess
import sys

import keras_hub
from keras_hub.src.models.vae.vae_backbone import VAEBackbone

hub = keras_hub.models
TOKENS = 12
TEXT = {"vocabulary_size": 100, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 32}
GROUPED = {"vocabulary_size": 100, "num_layers": 2, "num_query_heads": 4, "num_key_value_heads": 2, "hidden_dim": 32,
           "intermediate_dim": 48}  # fmt: skip
VISION = {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 32}
PHOTO = (32, 32, 3)


def resnet(side=64):
    return hub.ResNetBackbone(
        input_conv_filters=[64], input_conv_kernel_sizes=[7], stackwise_num_filters=[64, 8, 8, 16],
        stackwise_num_blocks=[1, 2, 1, 1], stackwise_num_strides=[1, 2, 2, 2], block_type="basic_block",
        image_shape=(side, side, 3),
    )  # fmt: skip


def mit():
    return hub.MiTBackbone(
        layerwise_depths=[1, 1, 1, 1], num_layers=4, layerwise_num_heads=[1, 2, 2, 4],
        layerwise_sr_ratios=[8, 4, 2, 1], max_drop_path_rate=0.1, layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 2], image_shape=(64, 64, 3), hidden_dims=[8, 12, 16, 32],
    )  # fmt: skip


def two_towers(vision, text, whole, **more):
    encoder = vision(image_shape=PHOTO, **VISION)
    words = text(vocabulary_size=100, embedding_dim=16, hidden_dim=16, num_layers=2, num_heads=2, intermediate_dim=32,
                 max_sequence_length=TOKENS)  # fmt: skip
    return whole(vision_encoder=encoder, text_encoder=words, **more)


def mobilenet():
    return hub.MobileNetBackbone(
        stackwise_expansion=[[16, 24], [24, 32]], stackwise_num_blocks=[2, 2],
        stackwise_num_filters=[[8, 8], [16, 16]], stackwise_kernel_size=[[3, 3], [5, 5]],
        stackwise_num_strides=[[2, 1], [2, 1]], stackwise_se_ratio=[[None, None], [0.25, 0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish", "hard_swish"]],
        stackwise_padding=[[1, 1], [2, 2]], output_num_filters=48, depthwise_filters=8, depthwise_stride=2,
        depthwise_residual=False, last_layer_filter=64, squeeze_and_excite=0.5, input_num_filters=8,
        image_shape=(64, 64, 3),
    )  # fmt: skip


MODELS = {
    "BERT": lambda: hub.BertBackbone(**TEXT),
    "RoBERTa": lambda: hub.RobertaBackbone(**TEXT),
    "ALBERT": lambda: hub.AlbertBackbone(embedding_dim=8, **TEXT),
    "ELECTRA": lambda: hub.ElectraBackbone(
        vocab_size=100, num_layers=2, num_heads=2, hidden_dim=16, embedding_dim=8, intermediate_dim=32
    ),
    "DeBERTaV3": lambda: hub.DebertaV3Backbone(bucket_size=8, max_sequence_length=TOKENS, **TEXT),
    "Bloom": lambda: hub.BloomBackbone(**TEXT),
    "GPT-2": lambda: hub.GPT2Backbone(**TEXT),
    "OPT": lambda: hub.OPTBackbone(**TEXT),
    "GPT-NeoX": lambda: hub.GPTNeoXBackbone(**{**TEXT, "hidden_dim": 32}),
    "Falcon": lambda: hub.FalconBackbone(
        vocabulary_size=100, num_layers=2, num_attention_heads=2, hidden_dim=16, intermediate_dim=32
    ),
    "Llama": lambda: hub.LlamaBackbone(**GROUPED),
    "Llama3": lambda: hub.Llama3Backbone(**GROUPED),
    "Mistral": lambda: hub.MistralBackbone(sliding_window=4, **GROUPED),
    "Mixtral": lambda: hub.MixtralBackbone(num_experts=3, sliding_window=4, **GROUPED),
    "Phi3": lambda: hub.Phi3Backbone(**GROUPED),
    "Qwen": lambda: hub.QwenBackbone(**GROUPED),
    "Gemma": lambda: hub.GemmaBackbone(head_dim=8, **GROUPED),
    "Gemma3": lambda: hub.Gemma3Backbone(head_dim=8, image_size=16, sliding_window_size=4,
                                         use_sliding_window_attention=True, **GROUPED),
    "T5": lambda: hub.T5Backbone(**TEXT),
    "BART": lambda: hub.BartBackbone(**TEXT),
    "XLNet": lambda: hub.XLNetBackbone(**TEXT),
    "RWKV7": lambda: hub.RWKV7Backbone(hidden_size=32, head_size=8, num_layers=2, vocabulary_size=100,
                                       intermediate_dim=48, gate_lora=8, mv_lora=4, aaa_lora=4, decay_lora=4),
    "ViT": lambda: hub.ViTBackbone(image_shape=PHOTO, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16,
                                   mlp_dim=32),
    "DeiT": lambda: hub.DeiTBackbone(image_shape=PHOTO, **VISION),
    "DINOv2": lambda: hub.DINOV2Backbone(image_shape=PHOTO, position_embedding_shape=PHOTO, **VISION),
    "SigLIP": lambda: two_towers(hub.SigLIPVisionEncoder, hub.SigLIPTextEncoder, hub.SigLIPBackbone),
    "CLIP": lambda: two_towers(hub.CLIPVisionEncoder, hub.CLIPTextEncoder, hub.CLIPBackbone, projection_dim=8),
    "Swin": lambda: hub.SwinTransformerBackbone(image_shape=(32, 32, 3), embed_dim=8, depths=[1, 2], num_heads=[2, 2],
                                                window_size=4),
    "ViTDet": lambda: hub.ViTDetBackbone(
        image_shape=PHOTO, patch_size=4, hidden_size=16, num_layers=2, global_attention_layer_indices=[1],
        intermediate_dim=32, num_heads=2, num_output_channels=8, window_size=4,
    ),
    "MiT": mit,
    "SegFormer": lambda: hub.SegFormerBackbone(image_encoder=mit(), projection_filters=24),
    "ResNet": resnet,
    "CSPNet": lambda: hub.CSPNetBackbone(
        stem_filters=8, stem_kernel_size=3, stem_strides=1, stackwise_depth=[1, 2], stackwise_strides=[1, 2],
        stackwise_num_filters=[8, 16], block_type="dark_block", stage_type="csp", image_shape=PHOTO,
        bottle_ratio=[0.5, 1.0], block_ratio=[1.0, 0.5], expand_ratio=[2.0, 1.0], down_growth=True,
    ),
    "DenseNet": lambda: hub.DenseNetBackbone(stackwise_num_repeats=[2, 2, 2], growth_rate=8, image_shape=(64, 64, 3)),
    "EfficientNet": lambda: hub.EfficientNetBackbone(
        stackwise_kernel_sizes=[3, 3], stackwise_num_repeats=[1, 2], stackwise_input_filters=[8, 8],
        stackwise_output_filters=[8, 16], stackwise_expansion_ratios=[1, 4],
        stackwise_squeeze_and_excite_ratios=[0.25, 0.25], stackwise_strides=[1, 2],
        stackwise_block_types=["v1", "fused"], width_coefficient=1.0, depth_coefficient=1.0, image_shape=(64, 64, 3),
    ),
    "HGNetV2": lambda: hub.HGNetV2Backbone(
        depths=[1, 2], embedding_size=8, hidden_sizes=[16, 32], stem_channels=[3, 8, 8], hidden_act="relu",
        use_learnable_affine_block=True, stackwise_stage_filters=[(8, 8, 16, 1, 2, 3), (16, 8, 32, 2, 2, 3)],
        apply_downsample=[False, True], use_lightweight_conv_block=[False, True], image_shape=(64, 64, 3),
    ),
    "MobileNetV3": mobilenet,
    "DeepLabV3": lambda: hub.DeepLabV3Backbone(
        image_encoder=resnet(), spatial_pyramid_pooling_key="P4", upsampling_size=4, dilation_rates=[2, 4],
        low_level_feature_key="P2", projection_filters=8, image_shape=(64, 64, 3),
    ),
    "RetinaNet": lambda: hub.RetinaNetBackbone(
        image_encoder=resnet(), min_level=3, max_level=5, use_p5=False, image_shape=(64, 64, 3)
    ),
    "VAE": lambda: VAEBackbone(
        encoder_num_filters=[32, 32], encoder_num_blocks=[1, 1], decoder_num_filters=[32, 32],
        decoder_num_blocks=[1, 1], sample_channels=4,
    ),
    "Whisper": lambda: hub.WhisperBackbone(num_mels=8, max_encoder_sequence_length=20, max_decoder_sequence_length=16,
                                           **TEXT),
}  # fmt: skip


def input_shapes(model):
    """{name: shape without the batch} with open dimensions filled: 12 tokens, 32 x 32 pixels, 20 frames of sound."""

    def filled(tensor):
        shape = tensor.shape[1:]
        if len(shape) == 3:
            return tuple(size or side for size, side in zip(shape, PHOTO, strict=True))
        return tuple(size or (20 if tensor.name == "encoder_features" else TOKENS) for size in shape)

    return {tensor.name: filled(tensor) for tensor in model.inputs}


def on_jax(kind, names):
    """{name: {"oracle", "count", "unsupported"}} from one process on the JAX backend."""
    done = subprocess.run(
        [sys.executable, str(pathlib.Path(__file__).with_name("jaxpr_oracle.py")), kind, *names],
        capture_output=True, text=True, check=False, env={**os.environ, "KERAS_BACKEND": "jax"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@functools.cache
def hub_on_jax():
    return on_jax("hub", MODELS)


def line(name):
    """What the record holds of a model: its MACs by the way in which they were counted, and layers looked into."""
    from utils import flops

    model = MODELS[name]()
    report = flops.count(model, input_shapes(model), unsupported="raise")
    assert report.total_params == model.count_params()
    macs = {way: sum(row.macs for row in report.rows if row.way == way) for way in ("rule", "graph")}
    inside = sum(row.way in ("inside", "graph") for row in report.rows)
    return {"model": name, "macs": report.total_macs, **macs, "opened": inside}


def record():
    """Write results/hub.json; returns its path."""
    from study import records

    lines = [line(name) | {"oracle": hub_on_jax()[name]["oracle"]} for name in MODELS]
    metrics = {"keras_hub": keras_hub.__version__, "models": lines}
    return records.write("hub", {"tokens": TOKENS}, metrics, "none", records.RESULTS)


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
    print(record())
