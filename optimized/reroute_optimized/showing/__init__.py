"""From what was decided to a view of it."""
