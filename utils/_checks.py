"""What several packages check at their public doors, said once."""

import operator


def whole(name, value, least=1, most=None):
    """`value` as an int, also one of NumPy; a ValueError for a boolean and for all but whole numbers in this range."""
    try:
        number = operator.index(value)
        if not isinstance(value, bool) and number >= least and (most is None or number <= most):
            return number
    except TypeError:
        pass
    expected = "a positive integer" if least == 1 else f"an integer from {least} up"
    expected = f"an integer from {least} to {most}" if most else expected
    raise ValueError(f"{name} must be {expected}, got {value!r}")
