"""Records in containers that others write: tables of image files, tars, Parquet and Arrow files.

Each module is one source; which one a place is, ``discovery`` decides. Must not import Pillow, stores or torch.
"""
