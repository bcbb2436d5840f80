"""The whole control plane in one thread of virtual time, everything random from one seed.

``.venv/bin/python -m tests.simulation --seed N --verbose`` replays one world; see
``docs/testing.md``.
"""
