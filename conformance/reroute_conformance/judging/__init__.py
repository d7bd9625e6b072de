"""Judging what a target answered: one file per kind of case."""
