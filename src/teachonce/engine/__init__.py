"""How work is run: jobs inline or in processes, prefetch, chunks, progress, buffers.

Knows nothing of images, stores or models; must not import torch when it is imported.
"""
