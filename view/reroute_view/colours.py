"""Colours that are told apart by colour-blind eyes and in grey print; every state has a mark of its own beside."""

from __future__ import annotations

COLOURS = {
    "runs": "#0072B2",
    "re-enters": "#E69F00",
    "veil": "#F4F4F2",
    "hatch": "#4A4A4A",
    "ink": "#111111",
    "paper": "#FFFFFF",
}
"""Blue and orange of Okabe and Ito's palette; what does not run is faded under hatching (deferred) or crosses (removed)."""

CIVIDIS = (
    (0.0, 0.135, 0.305),
    (0.131, 0.231, 0.433),
    (0.298, 0.332, 0.424),
    (0.425, 0.431, 0.448),
    (0.555, 0.538, 0.471),
    (0.696, 0.648, 0.44),
    (0.849, 0.772, 0.36),
    (0.996, 0.909, 0.218),
)
"""A scale from dark to light whose order every kind of sight sees (Nuñez and others, 2018), low scores first."""
