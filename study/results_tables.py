"""The tables that README shows: name -> function of the records -> Markdown.

A builder takes the records of `results.read_all` (notebook name -> record) and returns Markdown; `TABLES` is the
registry. A number that was not measured prints as "not run" with its reason, never as nothing. Rows from the quick
profile or from drawn garments say so. The layout that the builders read is documented in `study.results`.
"""

import re

from study.results_answers import NOT_PHOTOS, PUBLISHED_COSTS, QUESTIONS, as_published, rows_of
from study.results_cells import (
    Notes,
    accuracy_cell,
    markdown,
    not_run,
    not_yet,
    number_cell,
    number_of,
    pair_cell,
    percent_cell,
    plain_accuracy,
    words,
)

TRAINING, COSTS, QUANTIZATION = "01_data_and_training", "02_receptive_field_and_flops", "03_quantization"
DEPLOYMENT = "deployment"  # every model as a file, by a command
TABLES = {}


def table(name):
    """Decorator: register a builder (function of the records) under the name that README's markers use."""

    def register(build):
        TABLES[name] = build
        return build

    return register


@table("headline")
def headline(records):
    """Model, accuracy on the official test and on people whom it has never seen, cost, size, latency."""
    if missing := not_yet(records, TRAINING):
        return missing
    rows = [row for row in rows_of(records) if row.get("headline", not _is_baseline(row))]
    rows = [row for row in rows if not (_is_baseline(row) and not_run(row))]  # its network stands there once already
    notes, header = Notes(records), [
        "model", "classes, input", "official test: accuracy (95 %), n", "people never seen: accuracy (95 %), n",
        "params / MACs / FLOPs (M)", "float / int8 (KB)", "float / int8 (ms)", "weights",
    ]  # fmt: skip
    lines = []
    for row in sorted(rows, key=lambda row: (_classes(row) or 0, -(number_of(row, "accuracy") or 0))):
        judged, cost = _judgements(row, notes), _cost(records, row)
        files = {scheme: _scheme(records, row, scheme) for scheme in ("float32", "int8")}
        counted = [
            number_cell(cost, field, 1e6, digits, notes, "notebook 2 has not counted this model")
            for field, digits in (("params", 2), ("macs", 1), ("flops", 1))
        ]
        lines.append(
            [
                words(row.get("title", row.get("id"))) + notes.mark(row),
                f"{_classes(row)}, {row.get('input_size')}",
                *judged,
                counted[0] if len(set(counted)) == 1 else " / ".join(counted),
                pair_cell(files, "size_bytes", 1e3, 0, notes, "`python -m study.deployment` has not converted it"),
                pair_cell(files, "latency_ms", 1, 1, notes, "`python -m study.deployment` has not timed it"),
                words(row.get("weights") or "–"),
            ]
        )
    for machine in _machines(records):
        notes.add(f"Milliseconds: {words(machine)}")
    notes.add("Intervals: Wilson over photos on the official test, bootstrap over senders for people never seen")
    return markdown(header, lines) + notes.text()


@table("study_a")
def study_a(records):
    """Study A's rows, published beside measured."""
    return _study(records, "A")


@table("study_b")
def study_b(records):
    """Study B's rows, published beside measured."""
    return _study(records, "B")


@table("costs")
def costs(records):
    """Parameters, MACs, FLOPs and receptive field, published beside exact."""
    if missing := not_yet(records, COSTS):
        return missing
    notes = Notes(records)
    header = [
        "model", "params (M)", "MACs (M)", "FLOPs (M)", "published params, MACs, FLOPs (M)", "weights, float32 (MB)",
        "receptive field (px)", "stride (px)", "published field (px)",
    ]  # fmt: skip
    lines = []
    for title, cost in _models(records).items():
        published = PUBLISHED_COSTS.get(_key(title), {})
        reason = cost.get("reason") or "notebook 2 gives no such number"
        lines.append(
            [
                words(title),
                *(number_cell(cost, field, 1e6, digits, notes, reason)
                  for field, digits in (("params", 2), ("macs", 1), ("flops", 1))),
                published.get("costs", "–"),
                number_cell(cost, "weight_bytes", 1e6, 2, notes, reason),
                number_cell(cost, "receptive_field_px", 1, 0, notes, reason),
                number_cell(cost, "receptive_field_stride_px", 1, 0, notes, reason),
                published.get("receptive_field_px", "–"),
            ]
        )  # fmt: skip
    notes.add("FLOPs = 2 × MACs of the linear algebra, one photo; element-wise operations are not in them")
    return markdown(header, lines) + notes.text()


@table("schemes")
def schemes(records):
    """Every quantization scheme: accuracy, agreement with float, bytes, MACs, milliseconds."""
    if missing := not_yet(records, QUANTIZATION):
        return missing
    metrics = records[QUANTIZATION]["metrics"]
    notes = Notes(records, QUANTIZATION)
    header = [
        "model", "scheme", "accuracy (95 %), n", "macro F1", "agrees with float", "file / gzip (KB)", "MACs (M)",
        "median ms (float32 = 1)",
    ]  # fmt: skip
    lines = []
    for row in metrics.get("schemes") or []:
        row = _with_photos(records, row)
        reason = row.get("reason") or "notebook 3 gives no such number"
        sizes = [number_cell(row, field, 1e3, 0, notes, reason) for field in ("size_bytes", "gzip_bytes")]
        time = number_cell(row, "latency_ms", 1, 1, notes, reason)
        ratio = number_cell(row, "latency_ratio", 1, 2, notes, reason)
        classes = f", {row['classes']} classes" if row.get("classes") else ""
        lines.append(
            [
                words(row.get("model", "–")) + classes,
                words(row.get("title") or row.get("scheme")) + notes.mark(row, QUANTIZATION),
                accuracy_cell(row, notes, reason),
                percent_cell(row, "macro_f1", notes, reason),
                percent_cell(row, "agreement", notes, reason),
                " / ".join(sizes),
                number_cell(row, "macs", 1e6, 1, notes, reason),
                time if time == ratio else f"{time} ({ratio})",
            ]
        )
    if metrics.get("machine"):
        notes.add(f"Milliseconds: {words(metrics['machine'])}")
    return markdown(header, lines) + notes.text()


@table("answers")
def answers(records):
    """The studies' open questions and numbers, with this project's answer to each."""
    given = {}
    for record in records.values():
        given |= dict(record["metrics"].get("answers") or {})
    lines = []
    for question in QUESTIONS:
        answer = given.get(question.id) or question.answer(records)
        if answer is None:
            answer = f"not run: notebook {question.notebook} measures this (`make full`)"
        lines.append([question.study, words(question.published), words(answer)])
    return (
        markdown(["study", "what it says or asks", "answer"], lines)
        + Notes(records, TRAINING, COSTS, QUANTIZATION).text()
    )


def text_summary(records):
    """The rows of all records as plain text for a terminal, 100 characters wide at most."""
    lines = []
    for name, record in records.items():
        kind = NOT_PHOTOS if record["data"] == "sketches" else f"photos: {record['data']}"
        lines.append(f"{name} ({record['profile']} profile; {kind})")
        if name == TRAINING:
            for row in rows_of(records):
                what = "not run: " + str(row.get("reason")) if not_run(row) else plain_accuracy(row)
                lines.append(f"  {row.get('study', ''):2} {row.get('title', row.get('id'))!s:34} {what}")
        elif name == COSTS:
            for title, cost in _models(records).items():
                params, macs = number_of(cost, "params"), number_of(cost, "macs")
                if params is not None and macs is not None:
                    lines.append(f"  {title:37} {params / 1e6:6.2f} M parameters, {macs / 1e6:8.1f} M MACs")
        elif name == QUANTIZATION:
            for row in record["metrics"].get("schemes") or []:
                what = "not run: " + str(row.get("reason")) if not_run(row) else plain_accuracy(row)
                size = number_of(row, "size_bytes")
                size = "" if size is None else f", {size / 1e6:.2f} MB"
                lines.append(f"  {row.get('model', '')!s:20} {row.get('title') or row.get('scheme')!s:24} {what}{size}")
    return "\n".join(lines)


def _study(records, letter):
    if missing := not_yet(records, TRAINING):
        return missing
    notes = Notes(records)
    header = ["model", "published", "measured (95 %), n", "over senders (95 %)", "macro recall", "split", "conditions"]
    lines = []
    for row in rows_of(records):
        if row.get("study") != letter:
            continue
        reason = row.get("reason")
        senders = "–"
        if not_run(row):
            senders = notes.reason(reason)
        elif number_of(row, "sender_low") is not None and number_of(row, "sender_high") is not None:
            senders = (
                f"{100 * row['sender_low']:.1f}–{100 * row['sender_high']:.1f} ({row.get('n_senders', '?')} people)"
            )
        published = number_of(row, "published_accuracy")
        conditions = "; ".join(words(part) for part in (row.get("conditions"), _weights(row)) if part)
        lines.append(
            [
                words(row.get("title", row.get("id"))) + notes.mark(row),
                "–" if published is None else as_published(published),
                accuracy_cell(row, notes, reason),
                senders,
                percent_cell(row, "macro_recall", notes, reason),
                words(row.get("split") or "–"),
                conditions or "–",
            ]
        )
        if isinstance(grouped := row.get("grouped"), dict) and not not_run(row):
            inner = grouped.get("evaluation")
            judged = {"macro_recall": inner.get("macro_recall") if isinstance(inner, dict) else None, **grouped}
            seen = "each photo judged by a model that has seen nobody of its sender"
            kind = f"sender-grouped {grouped.get('k', '')}-fold".replace(" -", " ")
            lines.append(
                [
                    f"{words(row.get('title', row.get('id')))}, {kind}", "–", accuracy_cell(grouped, notes, None),
                    f"{100 * grouped['accuracy_low']:.1f}–{100 * grouped['accuracy_high']:.1f}",
                    percent_cell(judged, "macro_recall", notes, "the results do not hold it"), "grouped",
                    "; ".join(words(part) for part in (seen, grouped.get("conditions")) if part),
                ]
            )  # fmt: skip
    return markdown(header, lines) + notes.text()


def _judgements(row, notes):
    """Cells: official test, and people never seen."""
    reason = row.get("reason")
    if not_run(row):
        return notes.reason(reason), notes.reason(reason)
    grouped = row.get("grouped")
    if row.get("split") == "grouped":
        low, high = number_of(row, "sender_low"), number_of(row, "sender_high")
        over = {**row, "accuracy_low": low, "accuracy_high": high} if low is not None else row
        return "– (no official test)", accuracy_cell(over, notes, reason)
    cell = accuracy_cell(grouped, notes, None) if isinstance(grouped, dict) else None
    why = row.get("grouped_reason") or "no sender-grouped folds were trained for this model"
    return accuracy_cell(row, notes, reason), cell or notes.reason(why)


def _cost(records, row):
    """Costs of a row: its own numbers first, then notebook 2's for the same architecture and classes."""
    own = {field: row[field] for field in ("params", "macs", "flops") if row.get(field) is not None}
    for title, cost in _models(records).items():
        classes = cost.get("classes")
        if _key(title) in (_key(row.get("model")), _key(row.get("title"))) and classes in (None, _classes(row)):
            own = {**{field: cost.get(field) for field in ("macs", "flops", "params")}, **own}
    if own.get("macs") is not None and own.get("flops") is None:
        own["flops"] = 2 * own["macs"]
    return own or None


def _scheme(records, row, scheme):
    """A row's file in one scheme: as all models were converted and timed together, else as notebook 3 did."""
    metrics = records.get(DEPLOYMENT, {}).get("metrics", {})
    line = next((one for one in metrics.get("models") or [] if one.get("row") == row.get("id")), None)
    if line and scheme in line.get("schemes", {}):
        cpu = records[DEPLOYMENT]["environment"].get("cpu")
        times = (
            time for time in metrics.get("times") or []
            if (time.get("row"), time.get("scheme"), time.get("cpu")) == (row.get("id"), scheme, cpu)
        )  # fmt: skip
        return {"n": line.get("n"), **line["schemes"][scheme], "latency_ms": next(times, {}).get("median_ms")}
    return of_notebook_3(records, row, scheme)


def of_notebook_3(records, row, scheme):
    """A row's file as notebook 3 made and judged it: the int8 ones are those that ship."""
    listed = records.get(QUANTIZATION, {}).get("metrics", {}).get("schemes") or []
    return next((s for s in listed if s.get("row") == row.get("id") and s.get("scheme") == scheme), None)


def _machines(records):
    """What belongs beside the milliseconds of the headline table: one sentence a sitting."""
    deployment = records.get(DEPLOYMENT)
    if deployment is None:
        return filter(None, [records.get(QUANTIZATION, {}).get("metrics", {}).get("machine")])
    machines = deployment["metrics"].get("machines") or {}
    return filter(None, [machines.get(deployment["environment"].get("cpu"))])


def _with_photos(records, row):
    """A scheme's row with its number of photos (those of its model's row) and its MACs as a plain count."""
    photos = {judged.get("id"): judged.get("n") for judged in rows_of(records)}.get(row.get("row"))
    millions = number_of(row, "macs_m")
    return {"n": photos, "macs": None if millions is None else millions * 1e6} | row


def _models(records):
    models = records.get(COSTS, {}).get("metrics", {}).get("models") or {}
    if isinstance(models, list):
        return {str(model.get("title", model.get("model"))): model for model in models}
    return models


def _key(title):
    """One spelling for "EfficientNet-Lite0, fine-tuned", "efficientnet_lite0" and the like."""
    return re.sub(r"[^a-z0-9]", "", str(title).split(",")[0].lower())


def _classes(row):
    classes = row.get("classes")
    return len(classes) if isinstance(classes, list) else classes


def _is_baseline(row):
    return row.get("model") == "baseline_cnn" or str(row.get("title", "")).startswith("Baseline")


def _weights(row):
    return f"weights {row['weights']}" if row.get("weights") and not _is_baseline(row) else None
