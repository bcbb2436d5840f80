"""What a worker is told of a connection."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.config import load
from reconciler.config.desired import Project
from reconciler.run.orders import connection_order

CONFIG = """
project = "shop"

[connections.own]
connector = "history"

[connections.inbox]
connector = "files"
path = "inbox"

[connections.db]
connector = "sql"
url = "postgresql://reader@db/shop"
password = "env:PASSWORD"
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return load(path, {"PASSWORD": "hunter2"})


def test_the_projects_own_history_is_read_from_its_catalog(project: Project) -> None:
    order = connection_order(project, "own", lambda _: {})
    assert (order.name, order.connector) == ("own", "history")
    assert order.options == {"url": project.catalog}
    assert "url" not in connection_order(project, "inbox", lambda _: {}).options


def test_an_order_carries_the_secrets_and_does_not_show_them(project: Project) -> None:
    order = connection_order(project, "db", lambda c: dict.fromkeys(c.secrets, "hunter2"))
    assert order.secrets == {"password": "hunter2"}
    assert "hunter2" not in f"{order}{order!r}"
