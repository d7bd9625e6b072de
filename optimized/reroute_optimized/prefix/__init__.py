"""Prefixes that many prompts share and that run once."""
