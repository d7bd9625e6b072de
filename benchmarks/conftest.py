"""The suites of ``vlm-reroute bench`` under pytest-benchmark: the same cases, one call of one implementation at a time."""

import pytest
import torch
from reroute_conformance.bench.measuring.admission import admit
from reroute_conformance.bench.measuring.machine import Place
from reroute_conformance.bench.measuring.subjects import BESIDE, UnmeasuredError, subject_of
from reroute_conformance.bench.measuring.suites import SUITES

TARGETS = ("reference", "optimized-torch", "optimized-triton")


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="cpu in float32, or cuda in bfloat16")


def pytest_configure(config):
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("benchmarks need pytest-benchmark: pip install 'vlm-reroute[bench]'")


def pytest_generate_tests(metafunc):
    """Every case of the suite that a file is named for, by everybody."""
    suite = metafunc.module.__name__.rpartition("test_")[2]
    beside = {make().name: make for make in BESIDE}
    metafunc.parametrize("case", SUITES[suite](), ids=str)
    metafunc.parametrize("who", [*beside, *TARGETS])


@pytest.fixture(scope="session")
def admitted():
    return {entry.name: entry for entry in admit(TARGETS)}


@pytest.fixture
def measured(case, who, request):
    """Times one case for one who is measured; skips whom it does not concern, fails who fails the smoke."""
    place = Place.of(request.config.getoption("--device"))
    beside = {make().name: make for make in BESIDE}
    if who in beside:
        subject = beside[who]()
    else:
        entry = request.getfixturevalue("admitted")[who]
        if entry.smoke == "fails":
            pytest.fail(entry.reason)
        if entry.target is None:
            pytest.skip(entry.reason)
        subject = subject_of(entry.target, who)

    def run():
        try:
            call = subject.prepare(case.make(place))
        except UnmeasuredError as reason:
            pytest.skip(str(reason))
        benchmark = request.getfixturevalue("benchmark")
        benchmark.group, benchmark.extra_info = str(case), {**case.parameters}
        with torch.no_grad():
            benchmark(lambda: (call(), place.settle()))

    return run
