"""The transformers text decoder that is routed, as the rest of the package sees it."""
