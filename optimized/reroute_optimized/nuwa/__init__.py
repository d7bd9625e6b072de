"""Nüwa's first stage, in the vision tower."""
