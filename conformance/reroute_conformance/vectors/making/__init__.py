"""Where the vectors of v1 come from, and making them again."""
