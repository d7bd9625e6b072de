"""The conformance suite: is an implementation still recoverable visual token routing?

``vlm-reroute conform --target …`` runs it; :class:`~reroute_conformance.protocol.Target` is what it asks of an
implementation, which it reaches in no other way.
"""
