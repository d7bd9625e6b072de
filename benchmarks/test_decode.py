"""Tokens after a prefill."""


def test_decode(measured):
    measured()
