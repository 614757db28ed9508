"""A release as a stranger meets it: built, installed into empty environments, used.

    python -m tests.release [--dist dist] [--full]

``make wheel`` and ``make release-check`` run it; it is no part of the test suite, as it installs from the network.
"""
