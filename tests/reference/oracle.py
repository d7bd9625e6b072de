"""An independent oracle: dense, full-length, masked. It shares no code with the reference's routing.

Every block runs all rows under an explicit mask that hides deferred rows from the others; afterwards deferred rows are
overwritten with what they were. Attention, norms and projections are written out here from the modules' weights.
"""

import torch


def rms_norm(module, x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon) * module.weight


def turn(x, positions, theta=10000.0):
    """Rotary embedding of [heads, n, h]."""
    half = x.shape[-1] // 2
    angle = positions[:, None] / theta ** (torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def heads(x, count):
    return x.view(x.shape[0], count, -1).transpose(0, 1)


def block(layer, x, positions, visible):
    """One Llama block on all rows of [S, d]; ``visible`` [S, S] says who sees whom."""
    attention, config = layer.self_attn, layer.self_attn.config
    normed = rms_norm(layer.input_layernorm, x)
    q = turn(heads(attention.q_proj(normed), config.num_attention_heads), positions)
    group = config.num_attention_heads // config.num_key_value_heads
    k = turn(heads(attention.k_proj(normed), config.num_key_value_heads), positions).repeat_interleave(
        group, 0
    )
    v = heads(attention.v_proj(normed), config.num_key_value_heads).repeat_interleave(group, 0)
    weights = (q @ k.mT / q.shape[-1] ** 0.5 + torch.where(visible, 0.0, -torch.inf)).softmax(-1)
    x = x + attention.o_proj((weights @ v).transpose(0, 1).reshape(x.shape[0], -1))
    normed = rms_norm(layer.post_attention_layernorm, x)
    mlp = layer.mlp
    return x + mlp.down_proj(torch.nn.functional.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))


def scores(layer, x, positions, rows):
    """Head mean of the last row's attention over ``rows``, [len(rows)]."""
    attention, config = layer.self_attn, layer.self_attn.config
    normed = rms_norm(layer.input_layernorm, x)
    q = turn(heads(attention.q_proj(normed), config.num_attention_heads), positions)[:, -1]
    k = turn(heads(attention.k_proj(normed), config.num_key_value_heads), positions)[:, rows]
    k = k.repeat_interleave(config.num_attention_heads // config.num_key_value_heads, 0)
    return ((q[:, None] * k).sum(-1) / q.shape[-1] ** 0.5).softmax(-1).mean(0)


@torch.no_grad()
def routed(decoder, embeddings, visual, layers, counts, action):
    """Hidden states before the last norm [S, d], selections by layer, rows that ran each block."""
    x, size = embeddings, len(visual)
    positions = torch.arange(size, dtype=x.dtype)
    is_visual = torch.tensor(visual) & (torch.arange(size) < size - 1)
    active, alive = torch.ones(size, dtype=torch.bool), torch.ones(size, dtype=torch.bool)
    selected, ran = {}, []
    for index, layer in enumerate(decoder.layers):
        if index in layers and is_visual.any():
            universe = torch.nonzero(alive)[:, 0]
            score = torch.full((size,), -1.0, dtype=x.dtype)
            score[universe] = scores(layer, x, positions, universe)
            score[~is_visual] = -1.0
            count = min(counts[layers.index(index)], int((is_visual & alive).sum()))
            best = score.argsort(descending=True, stable=True)[:count]
            active = ~is_visual
            active[best] = True
            selected[index] = [int(v) for v in (torch.cumsum(is_visual, 0) - 1)[torch.sort(best).values]]
            if action == "delete":
                alive = active.clone()
        visible = torch.ones(size, size, dtype=torch.bool).tril() & active[None, :]
        visible |= torch.eye(size, dtype=torch.bool)  # a deferred row sees itself: its output is thrown away
        x = torch.where(active[:, None], block(layer, x, positions, visible), x)
        ran.append(int(active.sum()))
    return x, selected, ran, alive
