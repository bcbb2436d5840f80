"""Proofs that nothing grows: a month in one process, and minutes of a real daemon.

``python -m tests.soak`` runs the month, ``python -m tests.soak --serve`` the daemon.
"""
