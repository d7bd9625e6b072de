"""``vlm-reroute bench``: what an implementation that conforms costs, beside others and beside the least it can cost.

Here live what is measured (``works``, ``models``, ``suites``), who is (``subjects``, ``admission``), how (``timing``, ``machine``, ``floors``,
``memory``) and what becomes of it (``run``, ``saved``, ``compare``, ``tables``, ``terminal``, ``readme``, ``plots``, ``page``). What may not: a time of
a target that fails the smoke, and a figure without its machine.
"""
