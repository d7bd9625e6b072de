"""An independent oracle in float64: dense, full-length, masked. It shares no code with the reference.

Every block runs all rows under an explicit mask that hides deferred rows from the others; afterwards deferred rows are
overwritten with what they were. Attention, norms, rotary embeddings, linear attention and the positions of images are
written out here, from the modules' weights and the configuration.
"""

import copy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

IMAGE, VIDEO = 190, 191


def wide(model):
    """The model's weights in float64; none of its own forward is called."""
    return copy.deepcopy(model).double()


def rms_norm(module, x):
    zero_centred = type(module).__name__ == "Qwen3_5RMSNorm"
    eps = getattr(module, "variance_epsilon", None) or module.eps
    weight = 1 + module.weight if zero_centred else module.weight
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def angles(config, head_dim, positions):
    """[S, r / 2] rotary angles of positions [3, S]; which of the three coordinates turns a pair depends on the model."""
    rope = config.rope_parameters
    size = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    pairs = torch.arange(0, size, 2, dtype=torch.float32) / size
    frequencies = (1.0 / rope["rope_theta"] ** pairs).double()  # float32 numbers are part of the model
    section = rope.get("mrope_section")
    if section is None:
        coordinate = [0] * len(pairs)
    elif rope.get("mrope_interleaved"):
        coordinate = [i % 3 if i < 3 * section[i % 3] else 0 for i in range(len(pairs))]
    else:
        coordinate = [c for c, count in enumerate(section) for _ in range(count)]
    return positions.double()[coordinate].T * frequencies


def turn(x, angle):
    """Rotary embedding of the first channels of [heads, n, h]."""
    half = angle.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin(), rest], -1)


def heads(x, count):
    return x.view(x.shape[0], count, -1).transpose(0, 1)


def queries_keys(layer, x, positions):
    """Queries [H, S, h], keys [H, S, h] and the gate of the output, or None."""
    attention, config = layer.self_attn, layer.self_attn.config
    q = heads(attention.q_proj(x), config.num_attention_heads)
    k = heads(attention.k_proj(x), config.num_key_value_heads)
    gate = None
    if q.shape[-1] == 2 * k.shape[-1]:
        q, gate = q[..., : k.shape[-1]], q[..., k.shape[-1] :]
    if hasattr(attention, "q_norm"):
        q, k = rms_norm(attention.q_norm, q), rms_norm(attention.k_norm, k)
    angle = angles(config, q.shape[-1], positions)
    group = config.num_attention_heads // config.num_key_value_heads
    return turn(q, angle), turn(k, angle).repeat_interleave(group, 0), gate


def plain_attention(layer, x, positions, visible):
    """Output [S, d] and probabilities [H, S, S] under ``visible`` [S, S], which says who sees whom."""
    attention, config = layer.self_attn, layer.self_attn.config
    q, k, gate = queries_keys(layer, x, positions)
    group = config.num_attention_heads // config.num_key_value_heads
    v = heads(attention.v_proj(x), config.num_key_value_heads).repeat_interleave(group, 0)
    weights = (q @ k.mT / q.shape[-1] ** 0.5 + torch.where(visible, 0.0, -torch.inf)).softmax(-1)
    out = (weights @ v).transpose(0, 1)
    if gate is not None:
        out = out * torch.sigmoid(gate.transpose(0, 1))
    return attention.o_proj(out.reshape(x.shape[0], -1)), weights


def linear_attention(layer, x, active):
    """The gated delta rule, one active row after the other; other rows leave no trace in its states."""
    m = layer.linear_attn
    window = torch.zeros(m.conv_kernel_size, m.conv_dim, dtype=x.dtype)
    state = torch.zeros(m.num_v_heads, m.head_k_dim, m.head_v_dim, dtype=x.dtype)
    out, repeat = torch.zeros_like(x), m.num_v_heads // m.num_k_heads
    for row in torch.nonzero(active)[:, 0]:
        window = torch.cat([window[1:], m.in_proj_qkv(x[row])[None]])
        mixed = F.silu((window.T * m.conv1d.weight[:, 0]).sum(-1))
        q, k, v = mixed.split([m.key_dim, m.key_dim, m.value_dim])
        q, k = (t.view(m.num_k_heads, -1).repeat_interleave(repeat, 0) for t in (q, k))
        q, k = (t * torch.rsqrt(t.pow(2).sum(-1, keepdim=True) + 1e-6) for t in (q, k))
        beta = torch.sigmoid(m.in_proj_b(x[row]))[:, None]
        decay = torch.exp(-m.A_log.exp() * F.softplus(m.in_proj_a(x[row]) + m.dt_bias))
        state = state * decay[:, None, None]
        told = torch.einsum("hkv,hk->hv", state, k)
        state = state + k[:, :, None] * ((v.view(m.num_v_heads, -1) - told) * beta)[:, None, :]
        read = torch.einsum("hkv,hk->hv", state, q) / m.head_k_dim**0.5
        normed = read * torch.rsqrt(read.pow(2).mean(-1, keepdim=True) + m.norm.variance_epsilon)
        gated = m.norm.weight * normed * F.silu(m.in_proj_z(x[row]).view_as(normed))
        out[row] = m.out_proj(gated.flatten())
    return out


def block(layer, x, positions, active):
    """One block on all rows of [S, d], and the attention probabilities where it has them."""
    size = len(active)
    visible = torch.ones(size, size, dtype=torch.bool).tril() & active[None, :]
    visible |= torch.eye(size, dtype=torch.bool)  # a deferred row sees itself: its output is thrown away
    normed, weights = rms_norm(layer.input_layernorm, x), None
    if hasattr(layer, "self_attn"):
        mixed, weights = plain_attention(layer, normed, positions, visible)
    else:
        mixed = linear_attention(layer, normed, active)
    x = x + mixed
    normed = rms_norm(layer.post_attention_layernorm, x)
    return x + layer.mlp.down_proj(F.silu(layer.mlp.gate_proj(normed)) * layer.mlp.up_proj(normed)), weights


def own_scores(layer, x, positions, rows, asking):
    """Attention [H, asking, S] of the last rows of ``rows`` over ``rows``, each causally."""
    q, k, _ = queries_keys(layer, rms_norm(layer.input_layernorm, x), positions)
    logits = q[:, rows[-asking:]] @ k[:, rows].mT / q.shape[-1] ** 0.5
    logits = logits.masked_fill(~(rows[None, :] <= rows[-asking:, None]), -torch.inf)
    full = torch.zeros(q.shape[0], logits.shape[1], x.shape[0], dtype=x.dtype)
    full[:, :, rows] = logits.softmax(-1)
    return full


@dataclass
class Routed:
    states: torch.Tensor  # before the last norm, [S, d]
    alive: torch.Tensor
    selected: dict[int, list[int]] = field(default_factory=dict)
    ran: list[int] = field(default_factory=list)


def renumber(active, positions):
    """Active rows count from 0 without gaps."""
    return torch.where(active, torch.cumsum(active, 0) - 1, positions)


@torch.no_grad()
def routed(decoder, embeddings, visual, schedule, counts, positions=None, deltas=(), given=None):
    """A whole prefill under ``schedule``.

    ``counts`` rows are kept per decision, or the ordinals that are ``given`` by layer; ``deltas`` [S, d] are added per
    boundary.
    """
    x, size = embeddings.double(), len(visual)
    count = torch.arange(size).expand(3, -1)
    positions = count if positions is None else positions
    is_visual = torch.tensor(visual) & (torch.arange(size) < size - 1)
    active, alive = (torch.ones(size, dtype=torch.bool) for _ in range(2))
    result, weights, decided = Routed(x, alive), None, 0
    layers = [decision.layer for decision in schedule.decisions]
    for index, layer in enumerate(decoder.layers):
        if index in layers and is_visual.any():
            rule = schedule.score
            if rule.source == "previous":
                rows = torch.nonzero(active)[:, 0]
                per_head = weights[:, rows[-rule.n :]].mean(1)
            else:
                rows = torch.nonzero(alive)[:, 0]
                per_head = own_scores(layer, x, positions, rows, min(rule.n, len(rows))).mean(1)
            score = per_head.mean(0) if rule.heads == "mean" else per_head.amax(0)
            candidates = is_visual & (alive if schedule.pool == "all" else active)
            score = torch.where(candidates, score, -1.0)
            best = score.argsort(descending=True, stable=True)[: min(counts[decided], int(candidates.sum()))]
            if given is not None:
                best = torch.nonzero(is_visual)[:, 0][list(given[index])]
            active = ~is_visual
            active[best] = True
            decided += 1
            ordinals = torch.cumsum(is_visual, 0) - 1
            result.selected[index] = [int(v) for v in ordinals[torch.sort(best).values]]
            if schedule.action == "delete":
                alive = active.clone()
            if schedule.positions == "renumber":
                positions = renumber(active, positions)
        ran, weights = block(layer, x, positions, active)
        x = torch.where(active[:, None], ran, x)
        if index < len(deltas):
            x = x + deltas[index]
        result.ran.append(int(active.sum()) if weights is not None else 0)
    result.states, result.alive = x, alive
    return result


def image_positions(ids, grids, seconds_per_patch=None):
    """[3, S] coordinates of a Qwen prompt: text counts on, an image lies on its grid, text goes on after its longer side.

    A video of Qwen2.5-VL spaces its frames by ``seconds_per_patch``; the later families write a video frame by frame.
    """
    rows, start, column, left = [], 0, 0, list(grids)
    while column < len(ids):
        if ids[column] not in (IMAGE, VIDEO):
            rows.append((start, start, start))
            start, column = start + 1, column + 1
            continue
        frames, height, width = left.pop(0)
        height, width = height // 2, width // 2
        apart = seconds_per_patch if ids[column] == VIDEO and seconds_per_patch else 1
        grid = [
            (start + apart * t, start + h, start + w)
            for t in range(frames)
            for h in range(height)
            for w in range(width)
        ]
        rows += grid
        start, column = start + max(height, width), column + len(grid)
    return torch.tensor(rows).T
