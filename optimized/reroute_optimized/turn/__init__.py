"""What a turn is before anything runs, and what its cache holds."""
