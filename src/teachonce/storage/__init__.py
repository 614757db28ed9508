"""Bytes under a path: one small interface (``Storage``), local folders behind it, and resuming by plan.

Knows nothing of what the bytes mean; must not import anything of teachonce but ``errors``.
"""
