"""Self-contained pages: HTML parts, charts as SVG, the look that all pages share.

Knows nothing of what it shows.
"""
