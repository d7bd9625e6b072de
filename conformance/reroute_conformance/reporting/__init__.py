"""A run as data, and what people and machines read of it."""
