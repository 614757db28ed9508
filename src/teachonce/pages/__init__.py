"""Self-contained pages: shared templates, rendering of templates, charts as SVG, pictures as data.

Knows nothing of what it shows: a page's own template is in the ``templates/`` of the package that fills it.
"""
