"""The studies' open questions and numbers, and how this project's results answer each in one sentence."""

import dataclasses
from collections.abc import Callable

TRAINING, COSTS, QUANTIZATION = "01_data_and_training", "02_receptive_field_and_flops", "03_quantization"
NOT_PHOTOS = "drawn garments stand in for the photos: these numbers say nothing about clothes"
# Millions, as printed in the studies; keys as results_tables spells them.
PUBLISHED_COSTS = {
    "baselinecnn": {"costs": "2.9, 2,207.9, 4,415.9"},
    "efficientnetb0": {"costs": "6.06, 385.9, 771.84"},
    "mobilenetv2": {"receptive_field_px": 491},
}


@dataclasses.dataclass(frozen=True)
class Question:
    """One published number or open question.

    Attributes:
        id: key of `metrics["answers"]`, with which a notebook may answer in its own words.
        study: "A" or "B".
        published: what the study says or asks.
        notebook: 1, 2 or 3, which measures it.
        answer: function of the records -> sentence with its numbers, or None where they are not there.
    """

    id: str
    study: str
    published: str
    notebook: int
    answer: Callable


def percent(share):
    """0.935 -> "93.5 %"."""
    return f"{100 * share:.1f} %"


def as_published(share):
    """As many digits as a study printed: 0.8548 -> "85.48 %", 0.92 -> "92 %"."""
    return f"{round(100 * share, 4):g} %"


def rows_of(records):
    """The rows of notebook 1, or none."""
    return records.get(TRAINING, {}).get("metrics", {}).get("rows") or []


def row_of(records, name):
    """The row called `name` of notebook 1, if it was measured, else None."""
    found = [row for row in rows_of(records) if row.get("id") == name and row.get("status") == "measured"]
    return found[0] if found and found[0].get("accuracy") is not None else None


def _said(row):
    low, high = 100 * row["accuracy_low"], 100 * row["accuracy_high"]
    return f"{percent(row['accuracy'])} ({low:.1f}–{high:.1f}, n = {row['n']:,})"


def _accuracies(*names):
    """The rows of these names, those that were not run by name too; None where none was run."""

    def answer(records):
        if not any(row_of(records, name) for name in names):
            return None
        listed = {row.get("id"): row for row in rows_of(records)}
        said = []
        for name in names:
            measured = row_of(records, name)
            if measured or name in listed:
                title = listed[name].get("title", name)
                said.append(f"{title}: {_said(measured) if measured else 'not run'}")
        return "; ".join(said)

    return answer


def _also_blind(*names, best_only=False):
    """The rows by people never seen, and the same recipes (or the best) trained on a split that is blind to senders."""

    def answer(records):
        lines = records.get("splits", {}).get("metrics", {}).get("splits") or []
        blind = {line.get("row"): line for line in lines if line.get("split") == "random" and line.get("accuracy")}
        blind = [blind[name] for name in names if name in blind]
        if best_only:
            blind = sorted(blind, key=lambda line: line["accuracy"])[-1:]
        said = _accuracies(*names)(records)
        if said and blind:
            said += "; and on a split blind to senders, " + "; ".join(f"{one['title']}: {_said(one)}" for one in blind)
        return said

    return answer


def _balancing(records):
    protocols = records.get(TRAINING, {}).get("metrics", {}).get("protocols") or []
    if len(protocols) < 2 or any(protocol.get("accuracy") is None for protocol in protocols):
        return None
    said = "; ".join(f"{p['protocol']}: {percent(p['accuracy'])} (n = {p['n']:,})" for p in protocols)
    return f"The order decides. One frozen probe: {said}"


def _senders(records):
    table = records.get(TRAINING, {}).get("metrics", {}).get("senders") or []
    said = [
        f"{row['photos']}, {row['folds']} folds: {percent(row['accuracy'])} "
        f"({100 * row['low']:.1f}–{100 * row['high']:.1f}, n = {row['n']:,})"
        for row in table
    ]
    return (
        "One frozen probe, folds that ignore senders and folds that keep them apart: " + "; ".join(said)
        if said
        else None
    )


def _baseline_flops(records):
    metrics = records.get(COSTS, {}).get("metrics", {})
    model = _model(metrics, "Baseline CNN")
    if not model:
        return None
    ratio = metrics.get("published_baseline_over_exact")
    text = f"Exactly {model['flops']:,} FLOPs, {model['macs']:,} MACs, {model['params']:,} parameters"
    if ratio is None:
        return text
    return f"{text}; the published count divides the input size by the stride and is {100 * (ratio - 1):+.1f} % off"


def _b0_costs(records):
    model = _model(records.get(COSTS, {}).get("metrics", {}), "EfficientNetB0")
    if not model:
        return None
    return (
        f"{model['flops'] / 1e6:,.1f} M FLOPs and {model['params'] / 1e6:.2f} M parameters with global pooling and "
        "17 outputs; the published pair follows from no head that the study states"
    )


def _field(records):
    model = _model(records.get(COSTS, {}).get("metrics", {}), "MobileNetV2")
    if not model or model.get("receptive_field_px") is None:
        return None
    same = "confirmed" if model["receptive_field_px"] == 491 else "not confirmed"
    return f"{model['receptive_field_px']:,} px, stride {model['receptive_field_stride_px']} px: {same}"


def _model(metrics, title):
    models = metrics.get("models") or {}
    if isinstance(models, list):
        models = {model.get("title"): model for model in models}
    return models.get(title)


def _confusions(records):
    row = row_of(records, records.get(TRAINING, {}).get("metrics", {}).get("best_ten"))
    if not row or not row.get("confusion"):
        return None
    classes = row["classes"]
    pairs = sorted(
        ((count, true, predicted) for true, counts in enumerate(row["confusion"])
         for predicted, count in enumerate(counts) if true != predicted and count),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )[:3]  # fmt: skip
    said = ", ".join(f"{classes[true]} → {classes[predicted]} ({count})" for count, true, predicted in pairs)
    return f"{row['title']}: {said}" if said else f"{row['title']}: no confusion among {row['n']} photos"


def _latency(records):
    metrics = records.get(QUANTIZATION, {}).get("metrics", {})
    said = []
    for title, ratios in (metrics.get("latency") or {}).items():
        ways = sorted(((ratio, way) for way, ratio in ratios.items() if ratio is not None), reverse=True)
        if not ways:
            continue
        slow = ", ".join(f"{way} {ratio:,.1f}" for ratio, way in ways[:3])
        int8 = f"int8 with XNNPACK {ratios['LiteRT int8']:.2f}, " if ratios.get("LiteRT int8") is not None else ""
        said.append(f"{title}: {int8}slowest {slow}")
    if not said:
        return None
    return "The way of calling the file, not int8. Time with LiteRT's float32 file = 1: " + "; ".join(said)


def _int8_speed(records):
    """int8 over float32 of the fine-tuned ten-class model's file, on every processor that timed it."""
    said = {}
    metrics = records.get(QUANTIZATION, {}).get("metrics", {})
    ratio = next(
        (row.get("latency_ratio") for row in metrics.get("schemes") or []
         if (row.get("row"), row.get("scheme")) == ("b-lite0-fine", "int8")), None,
    )  # fmt: skip
    if ratio is not None:
        said[records[QUANTIZATION]["environment"].get("cpu")] = f"{ratio:.2f}"
    for line in records.get("deployment", {}).get("metrics", {}).get("times") or []:
        if (line.get("row"), line.get("scheme")) == ("b-lite0-fine", "int8") and line.get("ratio") is not None:
            said[line.get("cpu")] = f"{line['ratio']:.2f} ({line['ratio_low']:.2f}–{line['ratio_high']:.2f})"
    if not said:
        return None
    found = "; ".join(f"{cpu}: {ratio}" for cpu, ratio in said.items())
    return f"The processor decides. EfficientNet-Lite0, int8 over float32, one thread, XNNPACK: {found}"


def _quantized_flops(records):
    counted = records.get(QUANTIZATION, {}).get("metrics", {}).get("b0") or {}
    if counted.get("keras_macs") is None or counted.get("int8_macs") is None:
        return None
    text = (
        f"No: the Keras model has {counted['keras_macs'] / 1e6:,.1f} M MACs and its int8 file "
        f"{counted['int8_macs'] / 1e6:,.1f} M"
    )
    if counted.get("mean_ops") is None:
        return text
    return f"{text}; the file's `Mean` operators alone come to {counted['mean_ops']:,} operations, which is the 2.4 M"


def _quantized_accuracy(records):
    schemes = records.get(QUANTIZATION, {}).get("metrics", {}).get("schemes") or []
    found = {row.get("scheme"): row for row in schemes if row.get("accuracy") is not None}
    if "float32" not in found or "int8" not in found:
        return None
    float32, int8 = found["float32"], found["int8"]
    smaller = float32["size_bytes"] / int8["size_bytes"]
    text = (
        f"{float32.get('model', 'the model')}: float32 {percent(float32['accuracy'])}, "
        f"int8 {percent(int8['accuracy'])}, agreement {percent(int8['agreement'])}, {smaller:.1f} times smaller"
    )
    models = records.get("deployment", {}).get("metrics", {}).get("models") or []
    names = {"float32": "float32", "dynamic_range": "dynamic range", "int8": "int8"}
    for row, training in (("a-b0-frozen", "frozen"), ("a-b0-fine", "fine-tuned")):
        study_a = next((model.get("schemes") or {} for model in models if model.get("row") == row), {})
        said = [f"{name} {percent(study_a[key]['accuracy'])}" for key, name in names.items() if key in study_a]
        text += f". The study's EfficientNetB0, {training}, from a warm start: {', '.join(said)}" if said else ""
    return text


def _pruning(records):
    points = records.get(QUANTIZATION, {}).get("metrics", {}).get("pruning") or []
    whole = next((point for point in points if not point.get("removed")), None)
    if whole is None:
        return None
    said = [f"unpruned {percent(whole['accuracy'])}, {whole['macs_m']:,.0f} M MACs, gzip {whole['gzip_mb']:.1f} MB"]
    for kind in dict.fromkeys(point["kind"] for point in points if "int8" not in point["kind"]):
        last = max((point for point in points if point["kind"] == kind), key=lambda point: point["removed"])
        said.append(
            f"{100 * last['removed']:.0f} % of {kind} gone: {percent(last['accuracy'])}, {last['macs_m']:,.0f} M MACs, "
            f"gzip {last['gzip_mb']:.1f} MB"
        )
    if records[QUANTIZATION].get("profile") == "quick":
        said.append(
            "the accuracies are those of an unfinished training (quick: few photos, one pass), not what pruning costs"
        )
    else:
        said.append("each tuned for one pass over the training photos: a short recovery, not the best that can be kept")
    return "; ".join(said)


QUESTIONS = (
    Question(
        "a_baseline", "A", "The baseline reaches 46 %, with class weights 49 %.", 1,
        _also_blind("a-baseline", "a-weighted"),
    ),
    Question(
        "a_92", "A", "EfficientNetB0 reaches 92 % on 17 classes.", 1,
        _also_blind(
            "a-b0-frozen", "a-lite0-frozen", "a-lite0-frozen-balanced", "a-lite0-fine", "a-lite0-fine-balanced",
            "a-b0-fine", best_only=True,
        ),
    ),
    Question("a_augmentation", "A", "Did augmenting to 500 a class come before the split?", 1, _balancing),
    Question("senders", "A, B", "How much of an accuracy are the senders whom the model has seen?", 1, _senders),
    Question("a_baseline_flops", "A", "The baseline costs 4,415.9 M FLOPs.", 2, _baseline_flops),
    Question("a_b0_costs", "A", "EfficientNetB0: 6.06 M parameters and 771.84 M FLOPs.", 2, _b0_costs),
    Question("a_3_2_s", "A", "The quantized model takes 3.2 s an image, more than float: what is wrong?", 3, _latency),
    Question("a_faster", "A", "A quantized model should be faster than float.", 3, _int8_speed),
    Question("a_2_4_m", "A", "Quantization cuts 771 M FLOPs to 2.4 M.", 3, _quantized_flops),
    Question("a_quantized", "A", "Quantized, the model keeps its 92 %.", 3, _quantized_accuracy),
    Question("a_pruning", "A", "Pruning was described and not done: what would it give?", 3, _pruning),
    Question(
        "b_85", "B", "Frozen MobileNetV2 reaches 85.48 % on the official test.", 1,
        _accuracies(
            "b-mobilenet-published", "b-mobilenet-frozen", "b-lite0-frozen", "b-mobilenet-fine", "b-lite0-fine"
        ),
    ),
    Question(
        "b_confusions", "B", "Main confusions: shirt → longsleeve or outwear, dress → t-shirt, shorts → pants.", 1,
        _confusions,
    ),
    Question("b_491", "B", "MobileNetV2's receptive field at its last convolution is 491 px.", 2, _field),
)  # fmt: skip
