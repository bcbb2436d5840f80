"""The rules of this house, held by a machine: style, types, layers, sizes, words.

Each failure says where and what to do instead. The tools run as they would by hand, with their
settings in ``pyproject.toml``.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted(path for top in ("catalog", "reconciler") for path in (ROOT / top).rglob("*.py"))
MAX_FUNCTION = 70
MAX_FILE = 600
MAX_NESTING = 4
HEAVY = {"pyarrow", "duckdb", "adbc_driver_manager", "adbc_driver_postgresql", "adbc_driver_sqlite"}


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def run(*command: str) -> str:
    """Everything a tool says when it is not content."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


# -- the tools ---------------------------------------------------------------------------------


def test_ruff_is_content() -> None:
    assert run(tool("ruff"), "check", "--quiet", "--output-format=concise", ".") == ""


def test_the_code_is_formatted() -> None:
    assert run(tool("ruff"), "format", "--quiet", "--check", ".") == ""


def test_types_hold_strictly() -> None:
    assert run(tool("mypy"), "--no-error-summary") == ""


def test_imports_run_one_way() -> None:
    assert run(tool("lint-imports"), "--no-cache") == ""


def test_who_imports_it_gets_its_types() -> None:
    """Without the file a stranger's type checker takes no notice of them (PEP 561)."""
    for top in ("catalog", "reconciler"):
        assert (ROOT / top / "py.typed").is_file()


# -- sizes -------------------------------------------------------------------------------------


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{place(path, node.lineno)}: {node.name} has {length} lines, at most {MAX_FUNCTION}: "
        "give its parts names of their own"
        for path in CODE
        for node in functions(path)
        if (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION
    ]
    assert not long, "\n".join(long)


def test_files_have_one_subject() -> None:
    long = [
        f"{place(path, length)}: at most {MAX_FILE} lines: split it by subject"
        for path in CODE
        if (length := len(path.read_text().splitlines())) > MAX_FILE
    ]
    assert not long, "\n".join(long)


BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


def nesting(node: ast.AST, depth: int = 0) -> int:
    """The deepest block within ``node``; an ``elif`` is beside its ``if``, not within it."""
    deepest = depth
    for name, value in ast.iter_fields(node):
        children = value if isinstance(value, list) else [value]
        is_elif = name == "orelse" and len(children) == 1 and isinstance(children[0], ast.If)
        for child in children:
            if not isinstance(child, ast.AST) or isinstance(child, SCOPES):
                continue
            step = isinstance(child, BLOCKS) and not (is_elif and isinstance(node, ast.If))
            deepest = max(deepest, nesting(child, depth + step))
    return deepest


def test_nothing_is_nested_deeply() -> None:
    deep = [
        f"{place(path, node.lineno)}: {node.name} nests {depth} deep, at most {MAX_NESTING}: "
        "return early, or name the inner part"
        for path in CODE
        for node in functions(path)
        if (depth := nesting(node)) > MAX_NESTING
    ]
    assert not deep, "\n".join(deep)


@pytest.mark.parametrize(
    ("code", "depth"),
    [
        ("def f():\n pass", 0),
        ("def f():\n if a:\n  pass\n elif b:\n  pass\n else:\n  pass", 1),
        ("def f():\n if a:\n  for b in c:\n   pass", 2),
        ("def f():\n if a:\n  pass\n else:\n  if b:\n   pass\n  c()", 2),
        ("def f():\n try:\n  pass\n except E:\n  with a:\n   pass", 2),
        ("def f():\n if a:\n  def g():\n   if b:\n    pass", 1),
    ],
)
def test_nesting_is_counted_as_it_reads(code: str, depth: int) -> None:
    assert nesting(ast.parse(code).body[0]) == depth


# -- banned calls, and what to use instead -----------------------------------------------------

# Code that runs on the event loop; the others run in workers' and backends' own threads.
ON_THE_LOOP = ("reconciler/daemon", "reconciler/web", "reconciler/lease", "reconciler/telemetry")
MAY_PRINT = ("reconciler/cli",)
# Workers: they die with the daemon, and as a crash would end them.
ENDS_AT_ONCE = (
    "reconciler/run/worker.py",
    "reconciler/run/link.py",
    "reconciler/connectors/killpoints.py",
)

Banned = tuple[str, Callable[[str], bool], str]
BANNED: tuple[Banned, ...] = (
    ("time.sleep", lambda path: path.startswith(ON_THE_LOOP), "await anyio.sleep(...)"),
    ("time.time", lambda path: path != "catalog/clock.py", "a Clock that is handed in"),
    (
        "asyncio.create_task",
        lambda _: True,
        "an anyio task group: a task that nobody awaits fails unseen",
    ),
    ("asyncio.ensure_future", lambda _: True, "an anyio task group"),
    ("asyncio.gather", lambda _: True, "an anyio task group"),
    ("datetime.utcnow", lambda _: True, "datetime.now(UTC)"),
    ("os.system", lambda _: True, "subprocess.run([...])"),
    ("os._exit", lambda path: path not in ENDS_AT_ONCE, "sys.exit(...)"),
    ("print", lambda path: not path.startswith(MAY_PRINT), "reconciler.telemetry.logs"),
    ("breakpoint", lambda _: True, "a test"),
    ("eval", lambda _: True, "a parser"),
    ("exec", lambda _: True, "a function"),
)


def calls(path: Path) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def test_banned_calls_are_not_made() -> None:
    found = []
    for path in CODE:
        relative = str(path.relative_to(ROOT))
        lines = path.read_text().splitlines()
        for node, name in calls(path):
            if name == "datetime.now" and not node.args and not node.keywords:
                found.append(f"{place(path, node.lineno)}: datetime.now() has no zone; give UTC")
            found += [
                f"{place(path, node.lineno)}: {banned} is banned here; use {instead}"
                for banned, applies, instead in BANNED
                # ruff asks for a mark beside each print: one that has it was looked at.
                if name == banned and applies(relative) and "T201" not in lines[node.lineno - 1]
            ]
    assert not found, "\n".join(found)


# -- what may be loaded where ------------------------------------------------------------------


@pytest.mark.parametrize(
    "module", ["reconciler.daemon.serve", "reconciler.cli.main", "catalog.open"]
)
def test_heavy_libraries_stay_out_of(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert not HEAVY & {name.split(".")[0] for name in done.stdout.split()}


def test_nobody_touches_the_global_metrics_registry() -> None:
    found = [
        place(path, number)
        for path in CODE
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"prometheus_client.*\bREGISTRY\b", line)
    ]
    assert not found, f"use reconciler.telemetry.metrics.Metrics: {found}"


# -- what is in the repository -----------------------------------------------------------------


def tracked() -> list[Path]:
    """Files under version control, or all that a source tree without it would ship."""
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("not a git work tree")
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and path != Path(__file__)]


def texts() -> Iterator[tuple[Path, int, str]]:
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            yield path, number, line


FORBIDDEN = (
    (re.compile(r"\b(TODO|FIXME|XXX|HACK)\b"), "finish it, or write an issue"),
    (re.compile(r"(?<![\w.$}])/(?:work|home|root|Users)/\w"), "a path of one machine"),
    (
        re.compile(r"\b(?:files\.pythonhosted|pypi\.org/simple|registry\.npmjs)"),
        "a registry's host",
    ),
    (re.compile(r"(?i)\b(?:index-url|extra-index-url|trusted-host)\b\s*="), "a registry's address"),
    (re.compile(r"^(?:<{7}|>{7}) "), "a merge that was not finished"),
)


def test_nothing_unfinished_or_local_is_tracked() -> None:
    found = [
        f"{place(path, number)}: {why}: {line.strip()[:100]}"
        for path, number, line in texts()
        for pattern, why in FORBIDDEN
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def test_no_large_file_is_tracked() -> None:
    large = [place(path, 1) for path in tracked() if path.stat().st_size > 300_000]
    assert not large, f"over 300 kB: {large}"


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for path in tracked():
        if path.suffix != ".md":
            continue
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text()):
            if not (path.parent / target).exists():
                broken.append(f"{place(path, 1)}: {target}")
    assert not broken, "\n".join(broken)
