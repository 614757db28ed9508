"""What an evaluation finds beyond one figure: by class, which mistakes, against another model; as CSV and as a page.

Counted while the images pass, in memory that grows with the classes and not with the images.
"""
