"""``teachonce start``: what data is, and the commands that fit it, from a teacher to an exported student.

Runs none of them; must not import torch.
"""
