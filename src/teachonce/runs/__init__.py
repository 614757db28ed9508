"""What a training leaves behind: the folder of a run, its configuration, curve and result.

Must not import torch or what trains.
"""
