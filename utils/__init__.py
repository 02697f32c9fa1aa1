"""Clothing classifiers, what they cost, and how small they get.

The modules are imported by name (``from utils import flops``); this package imports none of them by itself, so that
``utils.flops`` and ``utils.receptive_field`` stay as light as Keras, NumPy and pandas.
"""
