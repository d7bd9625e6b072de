import pytest

from . import zoo


@pytest.fixture(
    scope="module", params=[(f, a) for f in zoo.FAMILIES for a in ("sdpa", "eager")], ids="-".join
)
def family(request):
    """The family and its attention; the model itself is looked up by :func:`zoo.net`."""
    return request.param
