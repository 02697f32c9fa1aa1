"""Receptive fields of any Keras 3 model: which pixels of the input a feature can see."""

from .field import (  # noqa: F401
    ReceptiveField,
    Region,
    effective,
    fields,
    receptive_field,
    table,
)
