"""A disk in memory that keeps, through a loss of power, only what was fsynced.

It stands in for ``Files``. Content of a file survives as of its last ``sync``; of what was written
since, any part may. A change of names (create, rename, exchange, remove) survives for certain once
a directory that it touched was synced; of the others any may and any may not, except that a change
never survives without the earlier ones of the same file or directory.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.connectors.destinations.files import Files


@dataclass(eq=False)
class Node:
    """A file or a directory."""

    entries: dict[str, Node] | None = None
    content: bytearray = field(default_factory=bytearray)
    durable: bytes = b""

    def child(self, name: str) -> Node | None:
        assert self.entries is not None
        return self.entries.get(name)

    def after_loss(self, rng: random.Random, share: float) -> Node:
        """The node as the next boot finds it: of a file's unsynced end some, zeros, or nothing."""
        if self.entries is not None:
            return Node({})
        live, safe = bytes(self.content), self.durable
        if share < 1.0:
            rest = live[len(safe) :]
            kept = rest[: rng.randint(0, len(rest))]
            live = safe + rng.choice((b"", kept, bytes(len(rest))))
        return Node(None, bytearray(live), live)


@dataclass(eq=False)
class Change:
    """Entries of directories set (to a node) or removed (None), at once."""

    entries: list[tuple[Node, str, Node | None]]
    nodes: list[Node]
    """What was moved, made or removed."""
    durable: bool = False
    left: bool = False
    """A rename of which only the directory that it left was synced: it may be gone from there and
    have arrived nowhere."""

    def apply(self, *, twins: dict[Node, Node] | None = None, arrives: bool = True) -> None:
        """Make the change, or make it to the nodes' ``twins``."""
        for directory, name, node in self.entries:
            where = twins[directory] if twins else directory
            assert where.entries is not None
            if node is None:
                where.entries.pop(name, None)
            elif arrives:
                where.entries[name] = twins[node] if twins else node

    def arrives_in(self, directory: Node) -> bool:
        set_here = [where is directory for where, _, node in self.entries if node is not None]
        return any(set_here) or not set_here


class LossySink:
    """A file being written on a ``LossyDisk``; the methods of ``Sink``."""

    def __init__(self, disk: LossyDisk, path: Path, node: Node) -> None:
        self.path = path
        self.closed = False
        self._disk = disk
        self._node = node

    @property
    def size(self) -> int:
        return len(self._node.content)

    @property
    def checksum(self) -> str:
        return f"crc32:{zlib.crc32(self._node.content):08x}"

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    def write(self, data: bytes) -> int:
        self._node.content += bytes(data)
        self._disk.step()
        return len(data)

    def flush(self) -> None: ...

    def sync(self) -> None:
        self._disk.sync_node(self.path, self._node)

    def close(self) -> None:
        self.closed = True


class LossyDisk(Files):
    """See the module. ``on_step`` is called after each thing that happens to the disk, and may ask
    what a loss of power at that moment would leave (``after_loss``). ``forgets``: an fsync of such
    a path is not done, as if the code had none.
    """

    def __init__(
        self,
        root: Node,
        on_step: Callable[[LossyDisk], None] = lambda disk: None,
        forgets: Callable[[str, Path], bool] = lambda kind, path: False,
    ) -> None:
        self.root = root
        self.steps = 0
        self._on_step = on_step
        self._forgets = forgets
        self._changes: list[Change] = []
        self._at_boot = {node: dict(node.entries or {}) for node in _nodes(root)}

    def step(self) -> None:
        """One thing happened."""
        self.steps += 1
        self._on_step(self)

    def after_loss(self, rng: random.Random) -> LossyDisk:
        """The disk as the next boot would find it: what survived, all of it durable then."""
        share = rng.choice((0.0, 0.5, 1.0))
        picked = [change for change in self._changes if change.durable or rng.random() < share]
        kept = set(map(id, self._with_earlier(picked)))
        moved = {node for change in self._changes for _, _, node in change.entries if node}
        twins = {node: node.after_loss(rng, share) for node in {*self._at_boot, *moved}}
        for node, entries in self._at_boot.items():
            if node.entries is not None:
                twins[node].entries = {name: twins[child] for name, child in entries.items()}
        for change in self._changes:
            if id(change) in kept:
                change.apply(twins=twins)
            elif change.left and rng.random() < 0.5:
                change.apply(twins=twins, arrives=False)
        return LossyDisk(twins[self.root])

    def _with_earlier(self, kept: list[Change]) -> list[Change]:
        wanted = set(map(id, kept))
        touched: set[int] = set()
        for change in reversed(self._changes):
            if id(change) in wanted or touched & set(map(id, change.nodes)):
                wanted.add(id(change))
                touched |= set(map(id, change.nodes))
        return [change for change in self._changes if id(change) in wanted]

    # -- paths ---------------------------------------------------------------------------------

    def _find(self, path: Path) -> Node | None:
        node: Node | None = self.root
        for name in path.parts[1:]:
            if node is None or node.entries is None:
                return None
            node = node.child(name)
        return node

    def _directory(self, path: Path) -> Node:
        node = self._find(path)
        if node is None or node.entries is None:
            raise FileNotFoundError(2, "No such directory", str(path))
        return node

    def _change(self, entries: list[tuple[Node, str, Node | None]], *nodes: Node) -> None:
        change = Change(entries, list(nodes))
        change.apply()
        self._changes.append(change)
        self.step()

    # -- the methods of Files -------------------------------------------------------------------

    def create(self, path: Path) -> LossySink:  # type: ignore[override]
        if self._find(path) is not None:
            raise FileExistsError(17, "File exists", str(path))
        node = Node()
        self._change([(self._directory(path.parent), path.name, node)], node)
        return LossySink(self, path, node)

    def read(self, path: Path) -> bytes:
        node = self._find(path)
        if node is None or node.entries is not None:
            raise FileNotFoundError(2, "No such file", str(path))
        return bytes(node.content)

    def checksum(self, path: Path) -> str:
        return f"crc32:{zlib.crc32(self.read(path)):08x}"

    def size(self, path: Path) -> int | None:
        node = self._find(path)
        return None if node is None or node.entries is not None else len(node.content)

    def is_dir(self, path: Path) -> bool:
        node = self._find(path)
        return node is not None and node.entries is not None

    def listdir(self, path: Path) -> list[str]:
        node = self._find(path)
        return sorted(node.entries) if node is not None and node.entries is not None else []

    def mkdir(self, path: Path) -> None:
        if not self.is_dir(path):
            node = Node({})
            self._change([(self._directory(path.parent), path.name, node)], node)

    def rename(self, source: Path, target: Path) -> None:
        node = self._find(source)
        if node is None:
            raise FileNotFoundError(2, "No such file", str(source))
        self._change(
            [
                (self._directory(source.parent), source.name, None),
                (self._directory(target.parent), target.name, node),
            ],
            node,
        )

    def exchange(self, one: Path, other: Path) -> None:
        first, second = self._find(one), self._find(other)
        assert first is not None
        assert second is not None
        self._change(
            [
                (self._directory(one.parent), one.name, second),
                (self._directory(other.parent), other.name, first),
            ],
            first,
            second,
        )

    def unlink(self, path: Path) -> None:
        node = self._find(path)
        if node is None:
            return
        if node.entries is not None:
            raise IsADirectoryError(21, "Is a directory", str(path))
        self._change([(self._directory(path.parent), path.name, None)], node)

    def rmdir(self, path: Path) -> bool:
        node = self._find(path)
        if node is None or node.entries:
            return False
        self._change([(self._directory(path.parent), path.name, None)], node)
        return True

    def sync_file(self, path: Path) -> None:
        node = self._find(path)
        assert node is not None
        self.sync_node(path, node)

    def sync_node(self, path: Path, node: Node) -> None:
        self.step()
        if not self._forgets("file", path):
            node.durable = bytes(node.content)

    def sync_dir(self, path: Path) -> None:
        directory = self._directory(path)
        self.step()
        if self._forgets("dir", path):
            return
        touching = [c for c in self._changes if any(d is directory for d, _, _ in c.entries)]
        for change in touching:
            change.left = True
        arrived = [change for change in touching if change.arrives_in(directory)]
        for change in self._with_earlier(arrived):
            change.durable = True

    @contextmanager
    def lock(self, path: Path, wait: float) -> Iterator[None]:
        yield


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in (node.entries or {}).values():
        yield from _nodes(child)
