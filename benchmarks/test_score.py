"""One decision's scores."""


def test_score(measured):
    measured()
