"""The canonical decoder is the decoder of transformers' own models, given their weights."""

import pytest
import torch
from reroute_conformance.cases.case import Row
from reroute_conformance.cases.decoder import DecoderCase, decoder_config
from reroute_reference import CanonicalDecoder, run
from reroute_spec import DecoderShape, RerouteError
from reroute_spec.canonical import CanonicalConfig

from . import zoo


def same(ours, theirs):
    assert [r.selected for r in ours.traces[0].decisions] == [r.selected for r in theirs.traces[0].decisions]
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)
    for layer in range(len(ours.kv_lengths)):
        for mine, other in zip(
            ours.cache[0].keys_values(layer), theirs.cache[0].keys_values(layer), strict=True
        ):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_canonical_decoder_equals_transformers_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    rows, config = [Row("tvvvt", 3)], decoder_config(4, 4, 2, head_dim=4)
    case = DecoderCase(zoo.UNROUTED.to_dict(), rows, 0, None, None, config, 2)
    canonical, weights = case.model()
    sizes = {
        name: getattr(canonical.shape, name)
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
        )
    }
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=canonical.vocab_size,
            num_hidden_layers=canonical.shape.num_layers,
            rms_norm_eps=canonical.rms_norm_eps,
            **sizes,
        )
    ).eval()
    llama.load_state_dict(
        {name if name.startswith("lm_head") else f"model.{name}": w for name, w in weights.items()}
    )
    routing = zoo.schedule((1, 2), (3, 1))
    same(
        run(CanonicalDecoder(canonical, weights), case.inputs(), routing), run(llama, case.inputs(), routing)
    )


def canonical_of(family):
    """The canonical decoder with a Qwen model's weights: sections and biases, or interleaved with q/k norms."""
    model = zoo.model(family)
    text = model.config.get_text_config()
    weights = dict(model.model.language_model.state_dict()) | {"lm_head.weight": model.lm_head.weight}
    config = CanonicalConfig(
        DecoderShape(zoo.LAYERS, 64, 128, 4, 2, 16),
        vocab_size=200,
        rms_norm_eps=text.rms_norm_eps,
        attention_bias=family == "qwen2_5_vl",
        qk_norm=family == "qwen3_vl",
        mrope_section=tuple(text.rope_parameters["mrope_section"]),
        mrope_interleaved=family == "qwen3_vl",
    )
    return CanonicalDecoder(config, {name: weights[name] for name in config.weight_shapes()})


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_three_coordinates_turn_the_pairs_that_transformers_turns(family):
    generator = torch.Generator().manual_seed(3)
    flags = [[letter == "v" for letter in "ttvvvvvvvvvvttvvvvvvttt"]]
    batch = {
        "inputs_embeds": torch.randn(1, 23, 64, generator=generator),
        "visual_mask": torch.tensor(flags),
        "position_ids": torch.randint(0, 40, (3, 1, 23), generator=generator),
    }
    routing = zoo.schedule((1, 6), (4, 3))
    decoder = canonical_of(family)
    ours = run(decoder, batch, routing)
    same(ours, run(zoo.model(family), batch, routing))
    text = {"inputs_embeds": torch.randn(1, 2, 64, generator=generator)}
    later = [
        run(model, {**text, **extra}, routing, cache=output.cache)
        for model, output, extra in (
            (decoder, ours, {}),
            (
                zoo.model(family),
                run(zoo.model(family), batch, routing),
                {"visual_mask": torch.zeros(1, 2, dtype=torch.bool)},
            ),
        )
    ]
    torch.testing.assert_close(later[0].logits, later[1].logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("section", [(2, 3), (2, 3, 4), (-1, 4, 5)])
def test_sections_that_do_not_fill_half_a_head_are_refused(section):
    with pytest.raises(RerouteError, match="mrope_section"):
        CanonicalConfig(DecoderShape(1, 16, 24, 2, 1, 16), 23, mrope_section=section)


def test_sections_survive_json():
    config = CanonicalConfig(DecoderShape(1, 16, 24, 2, 1, 16), 23, mrope_section=(2, 3, 3))
    assert CanonicalConfig.from_dict({**config.to_dict(), "mrope_section": [2, 3, 3]}) == config
