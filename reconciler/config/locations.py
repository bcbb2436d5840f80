"""URLs and secrets. Nothing found here is ever shown: a password may stand anywhere in a URL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from reconciler.config.words import Wrong

if TYPE_CHECKING:
    from reconciler.config.desired import SecretRef

SECRET_ALLOWED = "env:NAME, file:PATH or credential:NAME"  # noqa: S105 - the ways to name one
_MOVE = 'put it in password = "env:NAME"'
_LARGEST_SECRET = 64 * 1024


def absolute(text: str, base: Path) -> str:
    """``text`` as a path, relative to the directory ``base`` of the file that names it."""
    if not text or "\0" in text:
        raise Wrong("is no path", allowed="a path, absolute or relative to the file that names it")
    # normpath and not resolve: a symbolic link may be there to be moved.
    import os.path

    path = os.path.normpath(base / Path(text).expanduser())
    try:
        path.encode()
    except UnicodeEncodeError:  # it goes into the catalog and to workers, which take text
        raise Wrong(
            "lies in a folder whose name is no UTF-8 text", hint="move it, or rename that folder"
        ) from None
    return path


def source_url(text: str, base: Path) -> str:
    """``postgresql://`` without a password, or ``sqlite:///`` with its path made absolute."""
    if text.startswith("sqlite:"):
        return sqlite_url(text, base)
    scheme = text.partition(":")[0]
    if scheme != "postgresql" or not text.startswith("postgresql://"):
        raise Wrong(
            "is no database URL that this connector reads",
            allowed="postgresql://user@host:port/database, sqlite:///relative or sqlite:////abs",
            hint="write postgresql:// in place of postgres://" if scheme == "postgres" else "",
            secret=True,
        )
    without_password(text, _MOVE)
    return text


def catalog_url(text: str, base: Path) -> str:
    """Where the catalog is; a ``sqlite:///`` path is made absolute."""
    if text.startswith("sqlite:"):
        return sqlite_url(text, base)
    if not text.startswith(("postgresql://", "https://")):
        raise Wrong(
            "is no catalog URL",
            allowed="sqlite:///path, postgresql://user@host/database or https://host/path",
            secret=True,
        )
    without_password(text, "a catalog's password stands in a PostgreSQL password file (PGPASSFILE)")
    return text


def sqlite_url(text: str, base: Path) -> str:
    """``sqlite:///relative`` and ``sqlite:////absolute`` as ``sqlite:///`` + an absolute path."""
    path = text.removeprefix("sqlite:///")
    if path == text or not path or "?" in path or "#" in path:
        raise Wrong(
            "is no SQLite URL",
            allowed="sqlite:///relative/path or sqlite:////absolute/path, no ? or # in it",
            secret=True,
        )
    return f"sqlite:///{absolute(path, base)}"


def without_password(text: str, move: str) -> None:
    """Raise ``Wrong`` if a password stands in the URL, or may stand there by a slip."""
    try:
        parts = urlsplit(text)
        for server in parts.netloc.rpartition("@")[2].split(","):  # libpq takes several
            _ = urlsplit(f"//{server}").port
    except ValueError:
        raise Wrong(
            "is no URL that can be read",
            hint="if it holds a password: " + move,
            secret=True,
        ) from None
    words = {key.lower() for key, _ in parse_qsl(parts.query, keep_blank_values=True)}
    if parts.password is not None or words & {"password", "sslpassword"}:
        raise Wrong("holds a password", hint=move, secret=True)
    # An unescaped / ? or # in a password moves the rest of it out of the part for it.
    if parts.fragment or "#" in text or "@" in parts.path or "@" in parts.query:
        raise Wrong(
            'has "@" or "#" where none belongs, as a password in a URL would bring about',
            hint=f"{move}; if it is none, write %40 and %23",
            secret=True,
        )


def secret(text: str, base: Path) -> SecretRef:
    """Where a secret is. A literal secret is refused, and not shown."""
    from reconciler.config.desired import SecretRef

    scheme, colon, rest = text.partition(":")
    if colon and scheme == "env" and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", rest):
        return SecretRef("env", rest)
    if colon and scheme == "credential" and re.fullmatch(r"[A-Za-z0-9._-]+", rest):
        return SecretRef("credential", rest)
    if colon and scheme == "file" and rest:
        return SecretRef("file", absolute(rest, base))
    raise Wrong(
        "holds a secret itself, or names one in no known way",
        allowed=SECRET_ALLOWED,
        hint='such as password = "env:SHOP_DB_PASSWORD"',
        secret=True,
    )


def read_secret(ref: SecretRef, env: Mapping[str, str]) -> str:
    """What ``ref`` stands for, read now. One newline at the end of a file is not part of it.

    Raises ``Wrong`` with a sentence when it is not set, cannot be read, is empty or is not text;
    the sentence names the place and never what stands there.
    """
    if ref.scheme == "env":
        value = env.get(ref.name)
        if value is None:
            raise Wrong(
                f"environment variable {ref.name} is not set",
                hint="set it for the process, or name a file:PATH",
            )
        return _not_empty(value, f"environment variable {ref.name}")
    if ref.scheme == "file":
        return _read(Path(ref.name))
    directory = env.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise Wrong(
            f"credential {ref.name}: $CREDENTIALS_DIRECTORY is not set",
            hint="systemd sets it for a unit with LoadCredential=; by hand, while that unit runs: "
            "CREDENTIALS_DIRECTORY=/run/credentials/UNIT",
        )
    return _read(Path(directory) / ref.name)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_SECRET + 1)
    except OSError as error:
        raise Wrong(f"{path} cannot be read: {(error.strerror or 'error').lower()}") from None
    if len(data) > _LARGEST_SECRET:
        raise Wrong(f"{path} is larger than 64 KiB and so is hardly a secret")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise Wrong(f"{path} is not UTF-8 text") from None
    return _not_empty(text.removesuffix("\n").removesuffix("\r"), str(path))


def _not_empty(value: str, where: str) -> str:
    if not value:
        raise Wrong(f"{where} is empty")
    return value
