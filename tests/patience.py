"""How long tests wait for what should happen: long, since waiting costs only where it fails."""

from __future__ import annotations

import os

PATIENCE = float(os.environ.get("RECONCILER_TEST_PATIENCE", "180"))
"""Seconds until what should happen is taken for not happening; more for a machine that is busy."""
