"""Which rows a decision keeps."""


def test_select(measured):
    measured()
