"""Copies of stores, records and runs between any two storages, each byte checked in transit.

Must not import torch.
"""
