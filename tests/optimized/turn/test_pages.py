"""Pages of two blocks beside a list of rows a request, under drawn operations."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reroute_optimized.turn.pages import PagedLayer, PagedRows, PagePool

COUNTS = st.lists(st.sampled_from([0, 1, 5, 16, 17]), min_size=3, max_size=3)
OPERATIONS = st.lists(
    st.tuples(st.just("append"), COUNTS)
    | st.tuples(st.just("update"), st.integers(1, 3))
    | st.tuples(st.just("crop"), st.integers(0, 4))
    | st.tuples(st.just("reorder"), st.lists(st.integers(0, 2), min_size=1, max_size=4)),
    max_size=8,
)


def rows(count, start):
    """[count, 1, 2], every row its own number."""
    return torch.arange(start, start + count).float()[:, None, None].expand(-1, 1, 2).clone()


@given(COUNTS, OPERATIONS)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_holds_what_a_list_would(first, operations):
    pool = PagePool(2, rows(1, 0))
    layers = [PagedLayer(PagedRows(pool, 3), 0)]
    layers.append(PagedLayer(layers[0].rows, 1))
    held, written, width, copies = [[] for _ in first], 0, 0, []
    for operation, value in [("append", first), *operations]:
        if operation == "append":
            counts = (value * 2)[: len(held)]
            new, width = rows(sum(counts), written), width + max(counts)
            layers[0].rows.append(counts)
            slots = layers[0].rows.slots(counts, new.device)
            for pages, states in [(pool.keys, new), (pool.values, new + 0.5)]:
                for block in range(2):
                    pages[block].flatten(0, 1)[slots] = states
            for own, count in zip(held, counts, strict=True):
                own += range(written, written + count)
                written += count
        elif operation == "update" and held:
            new = torch.stack([rows(value, written + b * value)[:, 0][None] for b in range(len(held))])
            for layer in layers:
                layer.update(new, new + 0.5)
            for b, own in enumerate(held):
                own += range(written + b * value, written + (b + 1) * value)
            written, width = written + value * len(held), width + value
        elif operation == "crop":
            value = min([value, *map(len, held)])
            for layer in layers:
                layer.crop(-value)
            width -= value
            held = [own[: len(own) - value] for own in held]
        elif operation == "reorder":
            order = [i for i in value if i < len(held)] or [0]
            copies.append((layers[0].rows.fork(), [list(own) for own in held]))
            for layer in layers:
                layer.reorder_cache(torch.tensor(order))
            held = [list(held[i]) for i in order]
        assert layers[0].rows.lengths.tolist() == list(map(len, held))
        for layer in layers:
            assert layer.get_seq_length() == width
            assert_shows(layer, held, width)
        for kept, own in copies:
            assert_shows(PagedLayer(kept, 1), own, kept.width)
        assert pool.size - pool.held == len(set(pool._free)) == len(pool._free)
        everybody = [*layers[0].rows.pages(), *(page for kept, _ in copies for page in kept.pages())]
        assert not set(everybody) & set(pool._free)
        assert all(pool._holders[page] == everybody.count(page) for page in range(pool.size))
    layers = layer = copies = kept = None
    assert not pool.held


def assert_shows(layer, held, width):
    for shown, more in ((layer.keys, 0), (layer.values, 0.5)):
        assert shown.shape == (len(held), 1, width, 2)
        for own, found in zip(held, shown, strict=True):
            assert found[0, width - len(own) :, 0].tolist() == [n + more for n in own]
