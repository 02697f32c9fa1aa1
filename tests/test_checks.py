"""Whole numbers: one helper for all public doors."""

import numpy as np
import pytest

from utils._checks import whole


def test_whole_numbers_pass_as_int_also_those_of_numpy():
    for value in (3, np.int64(3), np.uint8(3), np.array(3)):
        assert whole("k", value, 3, 3) == 3 and type(whole("k", value)) is int


@pytest.mark.parametrize("value", [0, -1, 2.0, "3", None, True, np.True_, np.array([3]), float("nan")])
def test_all_else_is_named_with_what_was_expected(value):
    with pytest.raises(ValueError, match=r"^k must be a positive integer, got .*$"):
        whole("k", value)


def test_the_sentence_says_the_range():
    for bounds, said in (((0,), "an integer from 0 up"), ((2, 5), "an integer from 2 to 5")):
        with pytest.raises(ValueError, match=f"k must be {said}, got 9.5"):
            whole("k", 9.5, *bounds)
    with pytest.raises(ValueError, match="got 6"):
        whole("k", 6, 2, 5)
