"""The page: one table of pipelines, rendered here, with no script and nothing from elsewhere.

Every value is escaped. The style is inline and named by its hash in the content security policy,
so that even a mistake here could not run or load anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Final
from urllib.parse import urlencode

from catalog.records import Micros
from reconciler.plan.standing import State
from reconciler.web.status import PipelinePage, PipelineQuery, PipelineStatus, Summary

REFRESH_S: Final = 10

_STYLE: Final = """
:root{color-scheme:light dark;--line:#8884;--bad:#c4302b;--warn:#9a6700;--good:#1a7f37}
@media(prefers-color-scheme:dark){:root{--bad:#ff7b72;--warn:#d9a63a;--good:#56d364}}
body{font:15px/1.45 system-ui,sans-serif;margin:1.5rem auto;max-width:80rem;padding:0 1rem}
h1{font-size:1.3rem;margin:0}
dl{display:flex;flex-wrap:wrap;gap:.2rem 1.4rem;margin:.6rem 0 1rem}
dl div{display:flex;gap:.4rem;min-width:0}dt{opacity:.7}
dd{margin:0;min-width:0;overflow-wrap:anywhere}
form{margin:0 0 .8rem;display:flex;gap:.5rem;flex-wrap:wrap}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%}caption{text-align:left;opacity:.7;padding:.3rem 0}
th,td{text-align:left;padding:.35rem .8rem .35rem 0;border-bottom:1px solid var(--line);
vertical-align:top}
thead th,time,td:nth-child(3){white-space:nowrap}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.bad{color:var(--bad);font-weight:600}.warn{color:var(--warn);font-weight:600}
.good{color:var(--good)}.why{opacity:.75;font-size:.88em;max-width:34rem}
.banner{border-left:4px solid var(--bad);padding:.4rem .8rem;margin:.8rem 0}
nav{margin:.8rem 0;display:flex;gap:1rem}
@media(max-width:40rem){thead{display:none}th,td{display:block;border:0;padding:.1rem 0}
tr{display:block;border-bottom:1px solid var(--line);padding:.5rem 0}.n{text-align:left}
td:nth-child(3)::before{content:"data: "}td:nth-child(4)::before{content:"last run: "}
td:nth-child(5)::before{content:"next run: "}td:nth-child(6)::before{content:"rows: "}}
"""
_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)

_STATE_CLASS: Final = {
    State.IDLE: "",
    State.RUNNING: "good",
    State.WAITING: "",
    State.PAUSED: "warn",
    State.PARKED: "bad",
    State.HELD: "warn",
}
_OUTCOME_CLASS: Final = {"succeeded": "good", "nothing_new": "", "failed": "bad", "held": "warn"}


def render_page(
    summary: Summary,
    page: PipelinePage,
    query: PipelineQuery,
    not_ready: Sequence[str],
    now: Micros,
) -> str:
    """The whole document."""
    troubles = [f"Not ready: {why}" for why in not_ready]
    if summary.config_rejected:
        first, *more = summary.config_rejected.splitlines()
        rest = f" (and {len(more)} more: reconciler check)" if more else ""
        troubles.append(f"The config before stays in force, since {first}{rest}")
    banner = "".join(f'<p class="banner">{escape(text)}</p>' for text in troubles)
    title = escape(summary.project)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="refresh" content="{REFRESH_S}">'
        f"<title>{title} - reconciler</title><style>{_STYLE}</style></head><body>"
        f"<header><h1>{title}</h1>{_summary(summary, now)}</header><main>{banner}"
        f"{_form(query)}{_table(page, query, now)}{_paging(page, query)}</main></body></html>"
    )


def _summary(summary: Summary, now: Micros) -> str:
    counts = ", ".join(f"{number} {state.value}" for state, number in summary.states.items())
    facts = [
        ("pipelines", escape(counts) or "none"),
        ("stale", f'<span class="bad">{summary.stale}</span>' if summary.stale else "0"),
        ("runs", f"{summary.runs_open} of {summary.runs_max}"),
        ("catalog", escape(summary.catalog)),
        ("up", _span(now - summary.started_at)),
        ("version", escape(summary.version)),
    ]
    return "<dl>" + "".join(f"<div><dt>{t}</dt><dd>{d}</dd></div>" for t, d in facts) + "</dl>"


def _form(query: PipelineQuery) -> str:
    options = "".join(
        f"<option{' selected' if state == query.state else ''}>{state.value}</option>"
        for state in State
    )
    return (
        '<form><label>Name <input name="q" type="search" '
        f'value="{escape(query.text)}"></label>'
        f'<label>State <select name="state"><option value="">any</option>{options}</select>'
        "</label><button>Show</button></form>"
    )


def _table(page: PipelinePage, query: PipelineQuery, now: Micros) -> str:
    if not page.rows:
        return "<p>No pipeline matches.</p>" if page.total or _narrows(query) else _NOTHING
    first = query.offset + 1
    last = query.offset + len(page.rows)
    heads = ("Pipeline", "State", "Data", "Last run", "Next run")
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    head += '<th scope="col" class="n">Rows</th>'
    body = "".join(_row(row, now) for row in page.rows)
    return (
        f'<div class="wide"><table><caption>{first} to {last} of {page.total}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


_NOTHING: Final = "<p>The config names no pipelines yet.</p>"


def _narrows(query: PipelineQuery) -> bool:
    return bool(query.text) or query.state is not None


def _row(row: PipelineStatus, now: Micros) -> str:
    return (
        f'<tr><th scope="row">{escape(row.name)}</th>'
        f"<td>{_tag(row.state.value, _STATE_CLASS[row.state])}{_state_why(row)}</td>"
        f"<td>{_freshness(row, now)}</td><td>{_last_run(row, now)}</td>"
        f'<td>{_when(row.next_run_at, now)}</td><td class="n">{_rows(row)}</td></tr>'
    )


def _state_why(row: PipelineStatus) -> str:
    why = [row.reason] if row.reason else []
    if row.held:
        why.append("held: " + ", ".join(row.held))
    if row.failures:
        why.append(f"{row.failures} failed in a row")
    return _why("; ".join(why))


def _freshness(row: PipelineStatus, now: Micros) -> str:
    if row.fresh_at is None:
        return _tag("none yet", "bad" if row.stale else "")
    age = f"{_span(now - row.fresh_at)} old"
    return _tag(age + ", stale" if row.stale else age, "bad" if row.stale else "")


def _last_run(row: PipelineStatus, now: Micros) -> str:
    if row.last_outcome is None:
        return "never"
    words = row.last_outcome.replace("_", " ")
    text = _tag(words, _OUTCOME_CLASS.get(row.last_outcome, "warn"))
    reason = "" if row.last_reason == words else row.last_reason
    return f"{text} {_when(row.last_finished_at, now)}{_why(reason)}"


def _rows(row: PipelineStatus) -> str:
    aside = f'<div class="warn">{row.rejected:,} set aside</div>' if row.rejected else ""
    return f"{row.rows:,}{aside}"


def _paging(page: PipelinePage, query: PipelineQuery) -> str:
    links = []
    if query.offset > 0:
        links.append(_link(query, max(0, query.offset - query.limit), "prev", "Previous"))
    if query.offset + len(page.rows) < page.total:
        links.append(_link(query, query.offset + query.limit, "next", "Next"))
    return f"<nav>{''.join(links)}</nav>" if links else ""


def _link(query: PipelineQuery, offset: int, rel: str, text: str) -> str:
    asked: dict[str, str] = {"q": query.text, "state": query.state.value if query.state else ""}
    asked |= {"offset": str(offset), "limit": str(query.limit)}
    kept = urlencode({name: value for name, value in asked.items() if value})
    return f'<a rel="{rel}" href="?{escape(kept)}">{text}</a>'


def _tag(text: str, kind: str) -> str:
    return f'<span class="{kind}">{escape(text)}</span>' if kind else escape(text)


def _why(text: str) -> str:
    return f'<div class="why">{escape(text)}</div>' if text else ""


def _when(at: Micros | None, now: Micros) -> str:
    if at is None:
        return "-"
    exact = datetime.fromtimestamp(at / 1e6, UTC).isoformat(sep=" ", timespec="seconds")
    text = f"in {_span(at - now)}" if at > now else f"{_span(now - at)} ago"
    return f'<time datetime="{exact}" title="{exact}">{text}</time>'


def _span(micros: Micros) -> str:
    """A length of time in its largest unit, whole numbers: enough to see whether all is well."""
    seconds = max(0, micros) // 1_000_000
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
