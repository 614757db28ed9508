"""Copies of stores, records and runs between any two storages, each byte checked on its way.

Must not import torch.
"""
