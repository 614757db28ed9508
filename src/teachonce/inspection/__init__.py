"""What is in a folder of records, a store or a run: as text and as a page.

Must not import torch; matplotlib only where a page is written.
"""
