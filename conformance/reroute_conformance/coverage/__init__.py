"""Says for every rule where it is kept: by which line of the reference, by which check and by which mutant.

This room may import ``checks``, ``mutants`` and every room before them. It must not import ``running``, which stands
beside it, and it runs no check. ``vlm-reroute rules`` and ``vlm-reroute explain`` print what it finds. To cover a new
rule, mark the line of the reference with a comment that names it, and name it in a check and in a mutant. List what has
to wait in ``planned.json``, with what it waits for.
"""
