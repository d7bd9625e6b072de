"""Shows a run of the benchmark in the terminal, as a page with plots and as the README's table, and compares two runs.

A run is the plain data that ``measuring`` gives or reads from a file. This room may import ``measuring`` and every
other room but ``cli``; ``measuring`` must not import it. To add a form, write a module that takes this data and takes
its words from ``tables.py``, so that all forms say the same, and call it from ``cli/bench.py``.
"""
