"""What a case is, and how cases are drawn: one file per kind."""
