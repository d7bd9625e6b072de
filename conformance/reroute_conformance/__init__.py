"""This package is the conformance suite, which checks whether an implementation still is recoverable visual token routing.

``vlm-reroute conform --target …`` runs it. It reaches an implementation only through the members of
:class:`~reroute_conformance.protocol.Target`, and no module of it may import ``reroute_optimized``.

The rooms stand in the order of the path of the data, and a room imports only rooms before it: ``protocol``, ``tiny``,
``cases``, ``targets``, ``verdicts``, ``judging``, ``vectors``, ``checks``, ``mutants``, then ``running`` and
``coverage``, ``reporting`` and ``showing``, ``bench``, and ``cli``. To add a room, make a folder with an ``__init__``
that says what lives there, and list it in the contract of import-linter in ``pyproject.toml``.
"""
