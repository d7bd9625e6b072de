"""How a comparison becomes a verdict: tolerances, margins, and the rule that a wrong value broke."""
