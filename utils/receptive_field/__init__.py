"""Receptive fields of any Keras 3 model: which pixels of the input a feature can see.

Call `receptive_field(model, layer)` for one layer, `table(model)` for all of them with their MACs, `fields(model)` for
the objects behind the table, and `effective(model, images, layer)` to measure how much each pixel really matters.
`rules` has what a rule for a layer of your own is made of: `stepped` with one `window` an axis, or `merge`.
"""

from . import rules  # noqa: F401
from .algebra import Conflict  # noqa: F401
from .effective import EffectiveField, effective  # noqa: F401
from .field import ReceptiveField, Region, fields, receptive_field, table  # noqa: F401
