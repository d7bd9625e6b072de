"""Turns a run into a report, as data and in the forms that people and machines read.

``records`` makes the data, and every form is made of these records: ``terminal`` prints them, ``page`` makes a page of
HTML, ``junit`` makes JUnit XML, and ``files`` writes all but the printed form to a folder. This room may import
``running``, ``coverage`` and every room before them, but not ``showing``, which stands beside it, nor ``bench`` or
``cli``. To add a form, write a module that takes the records, and list its file in ``FILES`` and ``write_report`` in
``files.py``.
"""
