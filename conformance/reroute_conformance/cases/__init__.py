"""Defines the cases that a target is given, and draws them with Hypothesis strategies or lists fixed ones.

This room may import ``protocol`` and ``tiny``, and the reference. It must not import ``targets`` or any room after it:
a case does not know who is asked, nor how an answer is judged. To add a kind of case, write a subclass of ``Case`` with
a ``kind`` of its own in a module here, enter it in ``KINDS``, and write its strategy or its fixed cases beside it. Then
write its judge in ``judging``, and pair both in ``checks``.
"""
