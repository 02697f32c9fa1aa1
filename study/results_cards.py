"""The model cards of `models/README.md`: each shipped classifier by class and by person."""

from study.results_answers import rows_of
from study.results_cells import (
    TRAINING,
    Notes,
    accuracy_cell,
    markdown,
    not_run,
    not_yet,
    number_of,
    percent_cell,
    words,
)
from study.results_tables import of_notebook_3, table

SENDERS = 10  # people that a card names; the others are counted
HEADS = ("b-mobilenet-frozen", "b-lite0-frozen", "a-lite0-frozen", "a-lite0-frozen-balanced")


@table("card_ten")
def card_ten(records):
    """The shipped ten-class model by class and by sender, for its model card."""
    return _card(records, "b-lite0-fine")


@table("card_seventeen")
def card_seventeen(records):
    """The shipped 17-class model by class and by sender, for its model card."""
    return _card(records, "a-lite0-fine")


@table("card_mobilenet")
def card_mobilenet(records):
    """The shipped fine-tuned MobileNetV2 by class and by sender, for its model card."""
    return _card(records, "b-mobilenet-fine")


@table("card_heads")
def card_heads(records):
    """The shipped heads of frozen models, a line each: accuracy, people, and the class that each knows least."""
    if missing := not_yet(records, TRAINING):
        return missing
    found, notes, lines = {row.get("id"): row for row in rows_of(records)}, Notes(records), []
    for name in HEADS:
        row = found.get(name) or {"status": "not run", "title": name}
        reason = row.get("reason") or f"the results hold no row {name}"
        least = "–"
        if per_class := row.get("per_class"):
            judged = [one for one in per_class if number_of(one, "recall") is not None]
            worst = min(judged, key=lambda one: one["recall"], default=None)
            least = worst and f"{words(worst['class'])}: {_share(worst['recall'])} of {worst['support']}"
        lines.append(
            [
                f"`{name}`", words(row.get("title", name)) + notes.mark(row), words(row.get("split") or "–"),
                accuracy_cell(row, notes, reason), _over(row), percent_cell(row, "macro_recall", notes, reason),
                least, words(row.get("weights") or "–"),
            ]
        )  # fmt: skip
    header = [
        "folder", "model", "split", "accuracy (95 %), n", "by people", "macro recall", "least recall",
        "pretrained weights",
    ]  # fmt: skip
    return markdown(header, lines) + notes.text()


def _card(records, name):
    if missing := not_yet(records, TRAINING):
        return missing
    row = next((row for row in rows_of(records) if row.get("id") == name), {"status": "not run"})
    if not_run(row):
        return f"*Not run: {words(row.get('reason', f'the results hold no row {name}'))}.*"
    notes = Notes(records)
    said = [
        f"Float model, {words(row.get('split'))} test part: {accuracy_cell(row, notes, None)}; by people: {_over(row)}"
    ]
    if isinstance(grouped := row.get("grouped"), dict):
        said.append(
            f"Sender-grouped {grouped.get('k')}-fold: {accuracy_cell(grouped, notes, None)} "
            f"({words(grouped.get('conditions', ''))})"
        )
    int8 = of_notebook_3(records, row, "int8")
    if int8 and not not_run(int8):
        said.append(
            f"int8 file: {accuracy_cell(int8, notes, None)}, agreement with float {100 * int8['agreement']:.1f} %"
        )
    classes = markdown(
        ["class", "test photos", "precision", "recall", "F1"],
        [
            [words(one["class"]), one["support"], *(_share(one[field]) for field in ("precision", "recall", "f1"))]
            for one in row["per_class"]
        ],
    )
    senders = markdown(
        ["sender", "test photos", "accuracy (95 %)"],
        [
            [words(one["sender"]), one["n"], accuracy_cell({**one, "n": None}, notes, None)]
            for one in sorted(row["per_sender"], key=lambda one: -one["n"])[:SENDERS]
        ],
    )
    rest = len(row["per_sender"]) - SENDERS
    if rest > 0:
        senders += f"\n\n<small>and {rest} people with fewer photos each.</small>"
    return "\n".join(f"- {line}." for line in said) + f"\n\n{classes}\n\n{senders}" + notes.text()


def _share(value):
    return "–" if value is None else f"{100 * value:.0f} %"


def _over(row):
    if not_run(row):
        return "–"
    if number_of(row, "sender_low") is None:
        return "one person only"
    return f"{100 * row['sender_low']:.1f}–{100 * row['sender_high']:.1f} over {row.get('n_senders')} people"
