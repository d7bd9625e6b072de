"""Running checks: the same cases every time, in one process or several, failures shrunk and saved."""
