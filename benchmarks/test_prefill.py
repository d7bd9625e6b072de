"""A prefill of all blocks."""


def test_prefill(measured):
    measured()
