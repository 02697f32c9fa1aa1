"""This study only: its recipes, rows, records and pages."""
