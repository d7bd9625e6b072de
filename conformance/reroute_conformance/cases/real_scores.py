"""Draws scores as attention makes them: means over heads of softmaxes of heavy-tailed logits.

They hold what an implementation of selection may get wrong: sinks, plateaus of equal scores, ties at the threshold and
neighbours of a few ulps. A case is drawn as a handful of numbers and holds the bit patterns that they make, so that
Hypothesis can shrink it and it survives JSON.
"""

from __future__ import annotations

import math
import random

from hypothesis import strategies as st

from .case import SelectCase
from .strategies import bits_of


@st.composite
def attention_cases(draw: st.DrawFn) -> SelectCase:
    """Hundreds to thousands of rows: sinks, plateaus of equal patches, ties and neighbours of a few ulps at the threshold."""
    n = draw(st.integers(1, 8) | st.sampled_from([144, 576, 1024, 2048]))
    seed, heads = draw(st.integers(0, 999)), draw(st.sampled_from([1, 2, 8]))
    spread = draw(st.sampled_from([0.5, 2.0, 8.0]))
    bits = [bits_of(score) for score in _attention(random.Random(seed), n, heads, spread)]
    for _ in range(draw(st.integers(0, 2))):  # patches of sky: as if one had been copied
        start, length = draw(st.integers(0, n - 1)), draw(st.integers(2, 64))
        bits[start : start + length] = [bits[start]] * len(bits[start : start + length])
    k = draw(st.integers(0, n) | st.sampled_from([n // 9, n // 2, n - 1]))
    threshold = sorted(bits, reverse=True)[max(k, 1) - 1]
    at_boundary = draw(st.integers(0, 3))
    if at_boundary == 3:  # where the distance of neighbours changes
        threshold = bits_of(2.0 ** -draw(st.integers(1, 30)))
    for place, ulps in draw(st.dictionaries(st.integers(0, n - 1), st.integers(-3, 3), max_size=12)).items():
        bits[place] = max(0, threshold + ulps)
    return SelectCase(bits=bits, k=k)


def _attention(drawn: random.Random, n: int, heads: int, spread: float) -> list[float]:
    """The mean over heads of softmaxes over ``n`` rows, two of which every head may sink into."""
    mean = [0.0] * n
    for _ in range(heads):
        # logits with a heavy tail: a normal over the root of another
        logits = [spread * drawn.gauss(0, 1) / math.sqrt(0.1 + abs(drawn.gauss(0, 1))) for _ in range(n)]
        for sink in (0, n // 2):
            logits[sink] += drawn.choice((0.0, 4.0 * spread))
        top = max(logits)
        weights = [math.exp(logit - top) for logit in logits]
        total = sum(weights)
        mean = [m + weight / total / heads for m, weight in zip(mean, weights, strict=True)]
    return mean
