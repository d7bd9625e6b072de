"""Mutants of presets, of the original methods' variants, of M-RoPE, of low precision and of Nüwa's first stage."""

from __future__ import annotations

from . import method_faults as m
from .mutant import Mutant, answering


def _named(name: str, rule: str, change: m.Change) -> Mutant:
    return answering(name, rule, "preset", m.of_other_presets(change))


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
)
