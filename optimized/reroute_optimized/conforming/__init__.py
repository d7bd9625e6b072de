"""Adapts this package to the conformance suite; ordinary use imports nothing from here.

The suite finds the targets by the entry points ``reroute.targets`` and asks them through its protocol, so that neither
package imports the other. This room may import ``api`` and every room after it, but not ``integrations``, which stands
beside it. To add a member of the protocol, write a method of ``TorchTarget`` in ``target.py`` and list its profile
there; if it runs a model, list it with ``placed`` in ``TritonTarget`` too. To add a target, write its factory there and
list that in ``pyproject.toml``.
"""
