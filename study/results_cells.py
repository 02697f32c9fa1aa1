"""Cells, rows and remarks of README's tables: a number, or "not run" with its reason; never nothing."""

from study.results_answers import NOT_PHOTOS, as_published, percent

TRAINING = "01_data_and_training"


class Notes:
    """Numbered remarks below a table; the same remark gets the same number."""

    def __init__(self, records, *names):
        self.records, self.reasons, self.lines = records, [], []
        for name in names or (TRAINING,):
            record = records.get(name)
            if record and record["data"] == "sketches":
                self.add(f"**{NOT_PHOTOS[0].upper()}{NOT_PHOTOS[1:]}**")
            if record and record["profile"] == "quick":
                self.add(
                    "Made with the quick profile: baselines see reduced inputs and few epochs (`make full` does not)"
                )
            if record and record["profile"] == "full" and record["parameters"].get("BASELINES") == "quick":
                self.add("The two baseline CNNs alone were trained in the quick profile: reduced input, few epochs")

    def add(self, line):
        """A sentence below the table."""
        if line not in self.lines:
            self.lines.append(line)

    def reason(self, reason):
        """ "not run" with the number of its reason."""
        reason = words(reason or "the results do not say why")
        if reason not in self.reasons:
            self.reasons.append(reason)
        return f"not run [{self.reasons.index(reason) + 1}]"

    def mark(self, row, name=TRAINING):
        """What must stand in the row itself: the stand-in."""
        drawn = row.get("dataset") == "sketches" or self.records.get(name, {}).get("data") == "sketches"
        return " (drawn garments)" if drawn else ""

    def text(self):
        """All remarks as Markdown, reasons first."""
        lines = [f"[{number}] Not run: {reason}." for number, reason in enumerate(self.reasons, 1)]
        lines += [line if line.endswith((".", "**")) else line + "." for line in self.lines]
        # Not <sub>: where it wraps, its lines are drawn on top of each other.
        return "" if not lines else "\n\n" + "<br>\n".join(f"<small>{line}</small>" for line in lines)


def accuracy_cell(row, notes, reason):
    accuracy, low, high = (number_of(row, field) for field in ("accuracy", "accuracy_low", "accuracy_high"))
    if accuracy is None or not_run(row):
        return notes.reason(reason)
    interval = "" if low is None or high is None else f" ({100 * low:.1f}–{100 * high:.1f})"
    n = number_of(row, "n")
    return f"{percent(accuracy)}{interval}" + ("" if n is None else f", {n:,.0f}")


def plain_accuracy(row):
    accuracy, low, high = (number_of(row, field) for field in ("accuracy", "accuracy_low", "accuracy_high"))
    if accuracy is None:
        return "no accuracy"
    interval = "" if low is None or high is None else f" ({100 * low:.1f}–{100 * high:.1f})"
    published = number_of(row, "published_accuracy")
    beside = "" if published is None else f", published {as_published(published)}"
    return f"{percent(accuracy)}{interval}, n = {row.get('n')}{beside}"


def percent_cell(row, field, notes, reason):
    value = number_of(row, field)
    return notes.reason(reason) if value is None or not_run(row) else percent(value)


def number_cell(row, field, unit, digits, notes, reason):
    value = None if row is None else number_of(row, field)
    return notes.reason(reason) if value is None else f"{value / unit:,.{digits}f}"


def pair_cell(by_scheme, field, unit, digits, notes, reason):
    cells = [
        number_cell(row, field, unit, digits, notes, (row or {}).get("reason") or reason) for row in by_scheme.values()
    ]
    return cells[0] if cells[0] == cells[1] and "not run" in cells[0] else " / ".join(cells)


def number_of(row, field):
    """A number out of a record; text where a number belongs is refused by name."""
    value = row.get(field)
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        title = row.get("title") or row.get("id") or row.get("scheme") or "a row"
        raise ValueError(f"{field} of {title} in the results is {value!r:.40}, not a number; run the notebook again")
    return value


def not_run(row):
    return row.get("status", "measured") != "measured"


def not_yet(records, name):
    return None if name in records else f"*Not run yet: notebook {int(name[:2])} writes this table (`make full`).*"


def markdown(header, lines):
    if not lines:
        return "*The results hold no row for this table.*"
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join("–" if cell is None else str(cell) for cell in row) + " |" for row in rows)


def words(value):
    """Words out of a record as one Markdown cell: no line break, column or tag of their own."""
    words = " ".join(str(value).split())
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|")
