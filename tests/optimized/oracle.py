"""Routing by definition, one prompt at a time: every block on all rows under an explicit mask, then undone where deferred.

Uses blocks, norms and projections of the model itself, and of this project only the specification.
"""

from dataclasses import dataclass

import torch
from reroute_spec import plan
from reroute_spec.trace import select_in_spans
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


@dataclass
class Answer:
    selected: list
    scores: list
    inputs: dict  # decision layer -> residual stream at its input, all S rows
    stream: torch.Tensor  # [S, d] after the last block
    logits: torch.Tensor  # [rows alive, vocab]
    kv_rows: tuple
    plan: object


def text_decoder(model):
    return model.model.language_model if hasattr(model.model, "language_model") else model.model


def embed(model, inputs):
    """Merged embeddings [1, S, d] and visual flags, by running the unrouted model up to its text decoder."""
    if "inputs_embeds" in inputs:
        return inputs["inputs_embeds"], inputs["visual_mask"][0].tolist()
    seen = {}

    def keep(module, args, kwargs):
        seen["embeds"] = kwargs["inputs_embeds"]

    handle = text_decoder(model).register_forward_pre_hook(keep, with_kwargs=True)
    try:
        model(**inputs)
    finally:
        handle.remove()
    return seen["embeds"], (inputs["input_ids"][0] == model.config.image_token_id).tolist()


def score(block, hidden, cos, sin, alive, rule):
    """[S] scores; a full attention matrix in float32, read where it is needed."""
    attention, normed = block.self_attn, block.input_layernorm(hidden)
    shape = (*hidden.shape[:2], -1, attention.head_dim)
    q, k = attention.q_proj(normed).view(shape), attention.k_proj(normed).view(shape)
    if hasattr(attention, "q_norm"):
        q, k = attention.q_norm(q), attention.k_norm(k)
    q, k = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = (q.float() @ k.float().transpose(2, 3))[0] * attention.scaling  # [H, S, S]
    rows = hidden.shape[1]
    blind = torch.triu(torch.ones(rows, rows, dtype=torch.bool), 1) | ~alive[None]
    probabilities = logits.masked_fill(blind, -torch.inf).softmax(-1)
    asking = alive.nonzero().flatten()[-rule.n :]
    mean = probabilities[:, asking].mean(1)
    return mean.mean(0) if rule.heads == "mean" else mean.amax(0)


@torch.no_grad()
def run(model, inputs, schedule, images=None, positions=None, later=None):
    """``later``: token ids of text that follows the prompt; it runs every block and takes no part in decisions."""
    decoder = text_decoder(model)
    hidden, flags = embed(model, inputs)
    prompt = hidden.shape[1]
    the_plan = plan(schedule, len(decoder.layers), flags, images)
    if later is not None:
        hidden = torch.cat([hidden, decoder.embed_tokens(later)[None]], dim=1)
    rows = hidden.shape[1]
    positions = torch.arange(rows)[None] if positions is None else positions
    cos, sin = decoder.rotary_emb(hidden, position_ids=positions)
    visual = torch.tensor(the_plan.visual_rows, dtype=torch.long)
    alive, active = torch.ones(rows, dtype=torch.bool), torch.ones(rows, dtype=torch.bool)
    selected, scores, at_decision, kv_rows = [], [], {}, []
    stages = {stage.first: stage.index for stage in the_plan.stages if stage.index}
    eager = model.config._attn_implementation == "eager"
    for layer, block in enumerate(decoder.layers):
        if layer in stages:
            at_decision[layer] = hidden[0, :prompt].clone()
            pool = (
                selected[-1]
                if selected and schedule.pool == "survivors"
                else tuple(range(the_plan.num_visual))
            )
            all_scores = score(
                block, hidden[:, :prompt], cos[:, :prompt], sin[:, :prompt], alive[:prompt], schedule.score
            )
            own = [all_scores[visual[ordinal]].item() for ordinal in pool]
            selected.append(select_in_spans(the_plan, stages[layer], pool, own))
            scores.append(own)
            active = torch.ones(rows, dtype=torch.bool)
            active[visual] = False
            active[visual[list(selected[-1])]] = True
            if schedule.action == "delete":
                alive = active
        allowed = torch.tril(torch.ones(rows, rows, dtype=torch.bool)) & active[None] | torch.eye(
            rows, dtype=torch.bool
        )
        mask = (
            torch.zeros(rows, rows).masked_fill(~allowed, torch.finfo(torch.float32).min)
            if eager
            else allowed
        )
        ran = block(
            hidden, attention_mask=mask[None, None], position_embeddings=(cos, sin), position_ids=None
        )
        hidden = torch.where(active[None, :, None], ran, hidden)
        kv_rows.append(int(active[:prompt].sum()))
    logits = model.lm_head(decoder.norm(hidden))[0]
    return Answer(selected, scores, at_decision, hidden[0], logits[alive], tuple(kv_rows), the_plan)
