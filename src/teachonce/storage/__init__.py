"""Bytes under a path: files that are whole or absent.

Knows nothing of what the bytes mean; must not import anything of this package but errors.
"""
