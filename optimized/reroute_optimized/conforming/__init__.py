"""What exists for the conformance suite alone: the adapter by which it drives this package."""
