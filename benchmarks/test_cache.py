"""Requests of a cache moved."""


def test_cache(measured):
    measured()
