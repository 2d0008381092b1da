"""The metrics, one per file: the metric ``x`` is the function ``x`` in ``x.py``.

This file stays empty, so that importing one metric imports no other.
"""
