"""Which photos there are: fetch, verify, index, clean, split."""

from .load import (  # noqa: F401
    FRACTIONS,
    NAMES,
    OFFICIAL_TEST_SENDERS,
    Dataset,
    load,
)
