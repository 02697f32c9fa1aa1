"""The studies' printed numbers against counts, and what only fits if something was left out."""

from study import claims, records


def test_the_record_holds_what_the_code_counts():
    found = claims.measure()
    assert found == records.read("claims")["metrics"]
    assert all(row["published"] == row["flops"] for row in found["b0"] + found["mobilenet"])
    assert [row["published"] == row["flops"] for row in found["baseline"]] == [False] * 3 + [True] * 2
    assert found["squeeze_excite_macs"] == 627_200 and found["backbone_macs"] == 383_907_552
    heads = [(round(head["params"] / 1e6, 2), round(head["flops_without_gates"] / 1e6, 1)) for head in found["heads"]]
    assert heads[0] == (6.06, 771.8)


def test_the_printed_recalls_are_whole_counts_of_319_photos():
    (row,) = (r for r in records.read("01_data_and_training")["metrics"]["rows"] if r["id"] == "b-mobilenet-published")
    told = {line["class"]: line["recall"] for line in records.read("claims")["metrics"]["classes"]}
    counts = {one["class"]: round(told[one["class"]] * one["support"]) for one in row["per_class"]}
    for one in row["per_class"]:
        assert abs(counts[one["class"]] / one["support"] - told[one["class"]]) <= 0.005  # as printed, two digits
    assert sum(counts.values()) == 319
    assert round(0.8548 * row["n"]) == 318
