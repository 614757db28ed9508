"""How work is run: jobs in processes, prefetch, progress, memory that is used again.

Knows nothing of images, stores or models; must not import torch when it is imported.
"""
