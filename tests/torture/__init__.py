"""Torture: commands that are killed, starved, raced and fed with damage, at random moments and places, counted.

    python -m tests.torture [--minutes 5] [--seed 0] [--kinds kills,faults,races,array,ray] [--out FILE]

What must hold is the same for all: a command ends with its result, bit for bit that of an undisturbed run, or with one
line on stderr and exit code 1 or 2; never with a traceback or a signal of its own; nothing half-written keeps its final
name; nothing of ours is left behind once the same command has run to its end. ``make torture`` runs it;
tests/system/test_torture.py runs a few rounds of each kind in CI.
"""
