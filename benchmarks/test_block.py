"""A routed block: decision, block, write back."""


def test_block(measured):
    measured()
