"""Lists the mutants of presets, the original methods' variants, M-RoPE, low precision and Nüwa's first stage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from . import faulty_functions as f
from . import faulty_methods as m
from .mutant import Mutant, answering, asking


def _named(name: str, rule: str, change: m.Change) -> Mutant:
    return answering(name, rule, "preset", m.of_other_presets(change))


def _scores(name: str, rule: str, **changed: Any) -> Mutant:
    return Mutant(name, rule, "methods", {"reroute_reference.routing.score": f.score_with(**changed)})


def _decode(name: str, rule: str, first_position: Any) -> Mutant:
    return Mutant(
        name, rule, "methods-cache", {"reroute_reference.cache.RowCache.first_position": first_position}
    )


def _coordinates(name: str, taken: Any) -> Mutant:
    return Mutant(
        name, "RR-BLOCK-012", "mrope", {"reroute_spec.canonical.CanonicalConfig.coordinates": taken}
    )


def _low(name: str, rule: str, check: str, place: str, fault: Any) -> Mutant:
    return Mutant(name, rule, check, {f"reroute_reference.{place}": fault})


def _nuwa(name: str, rule: str, place: str, fault: Any) -> Mutant:
    return Mutant(name, rule, "nuwa", {f"reroute_reference.nuwa.{place}": fault})


METHODS_MUTANTS = (
    _named("preset-layers-truncated", "RR-CFG-010", m.layers_truncated),
    _named("preset-keeps-of-another-tier", "RR-CFG-010", m.keeps_of_another_tier),
    _named("preset-label-silent", "RR-CFG-010", m.label_silent),
    answering("preset-collisions-merged", "RR-CFG-010", "preset", m.MergesCollisions),
    _named("preset-snaps-down", "RR-CFG-012", m.snaps_down),
    _named("preset-not-snapped", "RR-CFG-012", m.not_snapped),
    answering("preset-reads-any-block-before", "RR-CFG-012", "preset", m.ReadsAnyBlock),
    _named("original-scores-its-own-block", "RR-CFG-013", m.scores_its_own_block),
    _named("original-keeps-positions", "RR-CFG-013", m.keeps_positions),
    _named("nuwa-without-a-first-stage-overlooked", "RR-CFG-013", m.first_stage_assumed),
    answering("keeps-through-binary-floats", "RR-CFG-014", "read-back", m.KeepsThroughFloats),
    asking(
        "previous-scored-by-the-deciding-block",
        "RR-SCORE-007",
        "methods",
        lambda schedule: replace(schedule, score=replace(schedule.score, source="own")),
    ),
    Mutant("previous-of-what-the-block-gave", "RR-SCORE-007", "methods", m.previous_of_the_output()),
    _scores("previous-over-rows-that-did-not-run", "RR-SCORE-007", alive=m.every_row),
    _scores("renumbered-rows-scored-at-the-old-positions", "RR-BLOCK-009", cos=m.old_cos, sin=m.old_sin),
    asking("renumber-ignored", "RR-BLOCK-009", "methods", lambda s: replace(s, positions="preserve")),
    _decode("renumbered-decode-from-the-logical-length", "RR-BLOCK-009", m.at_logical_length),
    _decode("renumbered-decode-at-one-position-in-all-blocks", "RR-BLOCK-009", m.at_last_blocks_rows),
    _coordinates("mrope-sections-taken-for-interleaved", m.sections_interleaved),
    _coordinates("mrope-of-time-alone", m.time_alone),
    Mutant(
        "mrope-decode-from-the-number-of-rows",
        "RR-KV-004",
        "mrope-cache",
        {"reroute_reference.model.extend": m.extended_from_length},
    ),
    asking(
        "renumber-ignored-under-mrope",
        "RR-CFG-011",
        "mrope-renumber",
        lambda schedule: replace(schedule, positions="preserve"),
    ),
    _nuwa("nuwa-metric-averaged-over-heads", "RR-POOL-007", "metric", m.metric_averaged),
    _nuwa("nuwa-metric-of-the-block-before", "RR-POOL-007", "metric", m.metric_of_the_block_before),
    _nuwa("nuwa-best-of-all-patches", "RR-POOL-008", "select_pillars", m.best_of_all),
    _nuwa("nuwa-pillars-gather-nothing", "RR-POOL-009", "weights", m.pillars_alone),
    _nuwa("nuwa-distance-ignored", "RR-POOL-009", "_REACH", 1e9),
    answering("nuwa-positions-closed-up", "RR-POOL-010", "nuwa", m.ClosesUpPositions),
    _low(
        "scores-in-the-models-dtype",
        "RR-SCORE-003",
        "wide-bfloat16",
        "routing.attention_scores",
        m.narrow_scores,
    ),
    _low(
        "rotary-angles-in-the-models-dtype",
        "RR-BLOCK-005",
        "wide-bfloat16",
        "decoder.CanonicalDecoder.rotary",
        m.narrow_rotary,
    ),
    _low(
        "squares-in-float16",
        "RR-BLOCK-004",
        "wide-float16",
        "decoder.CanonicalDecoder.final_norm",
        m.narrow_norm,
    ),
    _low(
        "bypass-through-bfloat16", "RR-BLOCK-001", "route-float16", "routing.routed_block", m.bypass_narrowed
    ),
    Mutant(
        "scores-narrowed-before-they-select",
        "RR-SEL-001",
        "select-bfloat16",
        {"reroute_conformance.targets.reference_target.select": m.select_narrowed},
    ),
)
