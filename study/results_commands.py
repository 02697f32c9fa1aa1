"""README's tables of what commands measured, beside those of the notebooks: growth, seeds, splits, files."""

import statistics

from study.results_answers import percent
from study.results_cells import Notes, accuracy_cell, markdown, not_run, number_cell, number_of, percent_cell, words
from study.results_tables import table
from utils.training import config as run_config

REASON = "the results do not hold it"


@table("growth")
def growth(records):
    """How time and memory grow with photos, layers and pixels: both ends of each range, and the exponent."""
    if "growth" not in records:
        return "*Not run yet: `python -m benchmarks.bench_growth --record` writes this table.*"
    metrics, notes = records["growth"]["metrics"], Notes({})
    photos, layers, sides = (metrics.get(key) or [] for key in ("photos", "layers", "sides"))
    lines = []
    for stage in dict.fromkeys(row.get("stage") for row in photos):
        rows = [row for row in photos if row.get("stage") == stage]
        time = [f"{_ends(rows, 'seconds', 1, 2, notes)} s", _slope(metrics, f"{stage}: time over photos", notes)]
        lines.append(
            [words(stage), f"{_ends(rows, 'photos', 1, 0, notes)} photos", *time, _ends(rows, "peak_mib", 1, 0, notes)]
        )
    for field, title in (("count_ms", "count"), ("receptive_field_ms", "receptive_field")):
        if layers:
            time = [f"{_ends(layers, field, 1, 1, notes)} ms", _slope(metrics, f"{title}: time over layers", notes)]
            lines.append([f"`{title}`", f"{_ends(layers, 'layers', 1, 0, notes)} layers", *time, "–"])
    if sides:
        time = [f"{_ends(sides, 'photo_ms', 1, 1, notes)} ms", _slope(metrics, "one photo: time over MACs", notes)]
        side = f"{_ends(sides, 'side', 1, 0, notes)} px, {_ends(sides, 'macs', 1e6, 0, notes)} M MACs"
        lines.append(["EfficientNet-Lite0, one photo, one thread", side, *time, "–"])
    machine = records["growth"]["environment"]
    machine = f"{words(machine.get('cpu'))}, {words(machine.get('cores'))} cores"
    notes.add(f"Measured on {machine}; drawn garments at 224 px, a process a measurement")
    notes.add("Exponent: slope of log time over log size (over MACs in the last row), 1 is linear, 0 constant")
    notes.add("Peak memory: anonymous memory above the start, MiB")
    return markdown(["work", "from – to", "time", "exponent", "peak memory (MiB)"], lines) + notes.text()


@table("seeds")
def seeds(records):
    """The same training with several seeds: mean and spread on the test part."""
    if "seeds" not in records:
        return "*Not run yet: `python -m study --seeds 3 ROW` writes this table.*"
    groups = {}
    for row in records["seeds"]["metrics"].get("seeds") or []:
        if not not_run(row) and number_of(row, "accuracy") is not None:
            key = tuple(words(row.get(field)) for field in ("title", "dataset", "split", "n"))
            groups.setdefault(key, []).append(row["accuracy"])
    lines = []
    for key, found in groups.items():
        spread = f"{100 * statistics.stdev(found):.2f}" if len(found) > 1 else "–"
        lines.append(
            [
                *key[:-1],
                f"{int(key[-1]):,}" if key[-1].isdecimal() else key[-1],
                len(found),
                percent(statistics.mean(found)),
                spread,
                f"{percent(min(found))} – {percent(max(found))}",
            ]
        )
    header = ["model", "photos", "split", "n", "seeds", "mean accuracy", "SD (points)", "lowest – highest"]
    return markdown(header, lines)


@table("splits")
def splits(records):
    """The same training on two kinds of split, each judged on its own test part."""
    if "splits" not in records:
        return "*Not run yet: `python -m study --splits ROW` writes this table.*"
    rows = records["splits"]["metrics"].get("splits") or []
    lines, notes = [], Notes({})
    for title in dict.fromkeys(words(row.get("title")) for row in rows):
        own = {row.get("split"): row for row in rows if words(row.get("title")) == title}
        line = [title]
        for split in ("grouped", "random"):
            row = own.get(split) or {"reason": "not trained on this split"}
            reason = row.get("reason") or REASON
            line += [accuracy_cell(row, notes, reason), percent_cell(row, "macro_recall", notes, reason)]
        lines.append(line)
    notes.add("Each cell: accuracy (95 % interval), n of its own test part; the two test parts hold different photos")
    header = ["model, 17 classes", "senders apart", "macro recall", "blind to senders", "macro recall"]
    return markdown(header, lines) + notes.text()


@table("trials")
def trials(records):
    """Recipes that were tried, and what each gave on validation."""
    if "trials" not in records:
        return "*Not run yet: `python -m study --record` writes this table.*"
    lines, notes = [], Notes({})
    rows = [row for row in records["trials"]["metrics"].get("trials") or [] if not not_run(row)]
    for row in sorted(rows, key=lambda row: (words(row.get("photos")), -(number_of(row, "validation_accuracy") or 0))):
        judged = {"accuracy": row.get("validation_accuracy"), "accuracy_low": row.get("low"), "n": row.get("n")}
        lines.append(
            [
                words(row.get("photos")), f"`{words(row.get('recipe'))}`",
                words(run_config.in_words(row.get("config") or {})) or "–",
                accuracy_cell({**judged, "accuracy_high": row.get("high")}, notes, REASON),
                number_cell(row, "best_epoch", 1, 0, notes, REASON),
                f"{number_cell(row, 'minutes', 1, 0, notes, REASON)} on {words(row.get('cpu') or 'a machine unnamed')}",
            ]
        )  # fmt: skip
    notes.add(
        "Validation ranks recipes and is no result: the ten-class part shares senders with train; each with seed 0"
    )
    header = ["photos", "recipe", "what sets it apart", "validation accuracy (95 %), n", "epoch kept", "minutes"]
    return markdown(header, lines) + notes.text()


FILES = {"float32": "float32", "dynamic_range": "dynamic range", "int8": "int8"}
BROKEN = 0.9  # an agreement with float32 below this is said in words


@table("deployment")
def deployment(records):
    """Every trained model as three files: answers, bytes, and time on each processor so far."""
    if "deployment" not in records:
        return "*Not run yet: `python -m study.deployment` writes this table.*"
    metrics, notes = records["deployment"]["metrics"], Notes({})
    machines, small = metrics.get("machines") or {}, [scheme for scheme in FILES if scheme != "float32"]
    times = {
        tuple(words(line.get(key)) for key in ("row", "cpu", "scheme")): line for line in metrics.get("times") or []
    }

    def ratio(model, cpu, scheme):
        line = times.get((words(model.get("row")), words(cpu), scheme))
        cells = [number_cell(line, field, 1, 2, notes, REASON) for field in ("ratio", "ratio_low", "ratio_high")]
        return cells[0] if "not run" in cells[0] else f"{cells[0]} ({cells[1]}–{cells[2]})"

    lines = []
    for model in metrics.get("models") or []:
        found = {scheme: model.get("schemes", {}).get(scheme) or {} for scheme in FILES}
        title = f"{words(model.get('title'))}, {words(model.get('classes'))} classes"
        lines.append(
            [
                title,
                *(accuracy_cell(one, notes, REASON) for one in found.values()),
                number_cell(model, "n", 1, 0, notes, REASON),
                " / ".join(percent_cell(found[scheme], "agreement", notes, REASON) for scheme in small),
                " / ".join(number_cell(one, "size_bytes", 1e3, 0, notes, REASON) for one in found.values()),
                *(" / ".join(ratio(model, cpu, scheme) for scheme in small) for cpu in machines),
            ]
        )  # fmt: skip
        for scheme in small:
            agreement = number_of(found[scheme], "agreement")
            if agreement is not None and agreement < BROKEN:
                notes.add(
                    f"{title}: {FILES[scheme]} is no file to ship, it answers like float32 on {percent(agreement)}"
                )
    names = " / ".join(FILES[scheme] for scheme in small)
    header = [
        "model", *(f"{title}: accuracy (95 %)" for title in FILES.values()), "n", f"agreement: {names}",
        f"KB: float32 / {names}", *(f"time, float32 = 1: {names}, {words(cpu)}" for cpu in machines),
    ]  # fmt: skip
    for machine in machines.values():
        notes.add(f"Times: {words(machine)}")
    return markdown(header, lines) + notes.text()


@table("int8_causes")
def int8_causes(records):
    """By what static int8 loses EfficientNetB0: biases beyond 32 bits, and ranges that outliers stretch."""
    if "int8_causes" not in records:
        return "*Not run yet: `python -m study.deployment --causes b-b0-frozen` writes this table.*"
    notes, found = Notes({}), {}
    for line in records["int8_causes"]["metrics"].get("causes") or []:
        key = f"{words(line.get('title'))}, {words(line.get('classes'))} classes", bool(line.get("biases_mended"))
        found.setdefault(key, {})[words(line.get("ranges"))] = {
            "accuracy": line.get("agreement"), "accuracy_low": line.get("agreement_low"),
            "accuracy_high": line.get("agreement_high"), "n": line.get("n"),
        }  # fmt: skip
    lines = [
        [title, "kept within 32 bits" if mended else "as ai-edge-quantizer writes them"]
        + [accuracy_cell(cells.get(method) or {}, notes, REASON) for method in ("min-max", "percentile")]
        for (title, mended), cells in found.items()
    ]
    notes.add("Share of validation photos on which the int8 file answers as the float32 file does (95 % Wilson), n")
    header = ["model", "biases", "ranges from least to largest", "ranges of the central 99.98 %"]
    return markdown(header, lines) + notes.text()


def _ends(rows, field, unit, digits, notes):
    """First and last value of a column."""
    return " – ".join(number_cell(row, field, unit, digits, notes, REASON) for row in (rows[0], rows[-1]))


def _slope(metrics, name, notes):
    return number_cell(metrics.get("exponents") or {}, name, 1, 2, notes, REASON)
