"""Random sessions against one dense forward over the whole conversation, under masks of what each turn ran."""

import random

import pytest
import torch
from reroute_reference import run

from . import oracle, zoo

WORDS = ["t", "ttt", "ttttt"]


def random_turn(rng, family):
    parts = [rng.choice(WORDS)]
    for _ in range(rng.choice([0, 1, 1, 2])):
        grid = (1, 2 * rng.randint(1, 4), 2 * rng.randint(1, 4))
        if family != "llava" and rng.random() < 0.2:
            grid = (2, *grid[1:])
        parts += [grid, rng.choice(WORDS)]
    return tuple(parts)


def random_schedule(rng, family):
    plain = [3, 7] if family == "qwen3_5" else list(range(8))
    layers = sorted(rng.sample(plain, rng.randint(0, 2)))
    action = rng.choice(["reroute", "delete"])
    keeps = sorted((rng.randint(1, 12) for _ in layers), reverse=action == "delete")
    rest = {"pool": "survivors"} if rng.random() < 0.3 else {}
    if rng.random() < 0.3:
        rest["score"] = {"query": "last_n", "n": rng.randint(1, 4), "heads": rng.choice(["mean", "max"])}
    return zoo.schedule(*zip(layers, keeps, strict=True), action=action, **rest)


class Conversation:
    """All rows so far: embeddings, positions, and which of them ran each block."""

    def __init__(self, family):
        self.family = family
        self.embeddings = torch.empty(0, 64, dtype=torch.float64)
        self.deltas = [torch.empty(0, 64, dtype=torch.float64) for _ in range(zoo.LAYERS)]
        self.positions = torch.empty(3, 0, dtype=torch.long)
        self.ran = [[] for _ in range(zoo.LAYERS)]
        self.turns = []

    def add(self, batch, routing, trace):
        embeds, deltas = zoo.embeddings(self.family, batch)
        first, size = len(self.embeddings), len(embeds)
        start = int(self.positions.max()) + 1 if first else 0
        self.embeddings = torch.cat([self.embeddings, embeds.double()])
        for layer in range(zoo.LAYERS):
            added = deltas[layer].double() if layer < len(deltas) else torch.zeros(size, 64).double()
            self.deltas[layer] = torch.cat([self.deltas[layer], added])
        self.positions = torch.cat([self.positions, zoo.positions(self.family, batch) + start], dim=1)
        flags = zoo.visual_flags(self.family, batch)
        visual = [row for row, flag in enumerate(flags[:-1]) if flag]
        assert trace.visual_rows == tuple(visual)
        for layer in range(zoo.LAYERS):
            last = [record for record in trace.decisions if record.layer <= layer]
            gone = {visual[ordinal] for ordinal in last[-1].deferred} if last else set()
            self.ran[layer] += [row not in gone for row in range(size)]
        self.turns.append((first, size, visual, routing, trace))

    @torch.no_grad()
    def check(self, output):
        """States of the last turn's rows, every cache, and the scores of every decision of the last turn."""
        decoder, x = zoo.wide(self.family).model.language_model, self.embeddings
        first, size, visual, routing, trace = self.turns[-1]
        records = {record.layer: record for record in trace.decisions}
        alive = set(range(size))
        for index, layer in enumerate(decoder.layers):
            active = torch.tensor(self.ran[index])
            if index in records:
                self.check_scores(layer, x, records[index], first, visual, alive, routing)
                if routing.action == "delete":
                    alive -= {visual[ordinal] for ordinal in records[index].deferred}
            if hasattr(layer, "self_attn"):
                normed = oracle.rms_norm(layer.input_layernorm, x)
                keys = oracle.queries_keys(layer, normed, self.positions)[1][::2][:, active]
                close(output.cache[0].keys_values(index)[0], keys)
            ran, _ = oracle.block(layer, x, self.positions, active)
            x = torch.where(active[:, None], ran, x) + self.deltas[index]
        close(output.residuals[0][zoo.LAYERS], x[[first + row for row in sorted(alive)]])
        assert output.cache[0].length == len(x)
        assert output.cache[0].next_position == int(self.positions.max()) + 1
        expected = [sum(ran) for ran in self.ran]
        plain = [hasattr(layer, "self_attn") for layer in decoder.layers]
        assert list(output.kv_lengths) == [n if p else 0 for n, p in zip(expected, plain, strict=True)]

    def check_scores(self, layer, x, record, first, visual, alive, routing):
        cached = [row for row in range(first) if self.ran[record.layer][row]]
        rows = torch.tensor([*cached, *(first + row for row in sorted(alive))])
        asking = min(routing.score.n, len(alive))
        per_head = oracle.own_scores(layer, x, self.positions, rows, asking).mean(1)
        scores = per_head.mean(0) if routing.score.heads == "mean" else per_head.amax(0)
        expected = scores[[first + visual[ordinal] for ordinal in record.pool]]
        close(torch.tensor(record.scores), expected, atol=1e-5)


def close(actual, expected, atol=2e-3):
    torch.testing.assert_close(actual.double(), expected, rtol=2e-3, atol=atol)


@pytest.mark.parametrize("family", zoo.FAMILIES)
@pytest.mark.parametrize("seed", range(8))
def test_a_session_is_one_dense_forward_under_what_each_turn_ran(family, seed):
    rng, cache, conversation = random.Random(seed), None, Conversation(family)
    for turn in range(4):
        batch = zoo.inputs(family, random_turn(rng, family), seed=10 * seed + turn)
        routing = random_schedule(rng, family)
        output = run(zoo.model(family, rng.choice(["sdpa", "eager"])), batch, routing, cache=cache)
        conversation.add(batch, routing, output.traces[0])
        conversation.check(output)
        cache = output.cache
