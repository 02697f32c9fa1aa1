"""This study alone: its recipes, its records, and the pages that are made from them. Nothing here is for borrowing.

Call :func:`study.recipes.rows` for what is trained, :mod:`study.records` for what was measured, and
``python -m study --help`` for the commands that train, measure, render the notebooks and fill the pages.
"""
