"""Assembles the site's pages from the files in `app/`: each is one document that loads nothing from other servers.

The application runs in a sandboxed frame without an origin (`frame_html`), because it shows texts of projects. The page
around it (`shell_html`) has Airflow's origin, and contains no text of a project.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from jinja2.utils import htmlsafe_json_dumps
from markupsafe import escape

# In the order in which they run: each uses only what is before it.
_SCRIPTS = (
    "vendor/preact.umd.js",
    "vendor/preact-hooks.umd.js",
    "vendor/htm.umd.js",
    "vendor/minisearch.umd.js",
    "words.js",
    "format.js",
    "facts.js",
    "search.js",
    "queries.js",
    "source.js",
    "parts.js",
    "tests.js",
    "columns.js",
    "changes.js",
    "start.js",
    "table.js",
    "releases.js",
    "more.js",
    "searchbox.js",
    "app.js",
)
_SANDBOX = "sandbox allow-scripts allow-popups allow-popups-to-escape-sandbox allow-downloads"
# The tables' layers, as in the page's header.
_ICON = "data:image/svg+xml," + "".join(
    (
        "%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 20 20'%3E",
        "%3Crect x='2' y='3' width='16' height='4' rx='1.5' fill='%23c9971c'/%3E",
        "%3Crect x='2' y='8.5' width='16' height='4' rx='1.5' fill='%238b96a1'/%3E",
        "%3Crect x='2' y='14' width='16' height='4' rx='1.5' fill='%23b0713f'/%3E%3C/svg%3E",
    )
)


def frame_html(data: dict[str, Any] | None = None) -> str:
    """Returns the application as one document.

    Args:
        data: everything that the document shows, if it is opened as a file; its state, history, sites and tables. If
            it is None, the application asks the page around it.
    """
    policy = _meta(_frame_rules()) if data is not None else ""
    inside = "" if data is None else f'<script type="application/json" id="busco-data">{_json(data)}</script>\n'
    scripts = "\n".join(f"<script>{script}</script>" for script in _scripts())
    return _filled(
        "frame.html",
        {"policy": policy, "icon": _ICON, "style": _text("app.css"), "data": inside, "scripts": scripts},
    )


def frame_csp() -> str:
    """Returns the Content-Security-Policy with which `frame_html()` must be served.

    It sandboxes the document wherever it is opened, so that it has no origin, and no access to Airflow's cookies.
    """
    return "; ".join([_SANDBOX, *_frame_rules(), "frame-ancestors 'self'"])


def shell_html(base: str, frame: str) -> str:
    """Returns the page around the application; the same for each address of the site.

    Args:
        base: the path below which the site is served, such as `/docs/`.
        frame: the address of `frame_html()`, in the same origin.

    Raises:
        ValueError: the base is no absolute path that ends with a slash.
    """
    if not base.startswith("/") or base.startswith("//") or not base.endswith("/"):
        raise ValueError(f"{base!r} is not the path of a folder, such as /docs/")
    return _filled(
        "shell.html",
        {
            "icon": _ICON,
            "style": _text("shell.css"),
            "config": _json({"base": base}),
            "script": _script("shell.js"),
            "frame": str(escape(frame)),
        },
    )


def shell_csp() -> str:
    """Returns the Content-Security-Policy with which `shell_html()` must be served."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash(_script('shell.js'))}",
            f"style-src {_hash(_text('shell.css'))}",
            "img-src data:",
            "connect-src 'self'",
            "frame-src 'self'",
            "form-action 'none'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )


def away_html(login_url: str) -> str:
    """Returns the page that answers a request without a login: it keeps the address's fragment and opens the login.

    Raises:
        ValueError: the URL of the login is neither a path nor an address of the web.
    """
    if urlsplit(login_url).scheme not in ("", "http", "https"):
        raise ValueError(f"{login_url!r} is not the URL of a login")
    return _filled(
        "away.html",
        {"config": _json({"login": login_url}), "script": _script("away.js"), "login": str(escape(login_url))},
    )


def away_csp() -> str:
    """Returns the Content-Security-Policy with which `away_html()` must be served."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash(_script('away.js'))}",
            "img-src data:",
            "form-action 'none'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        ]
    )


def _frame_rules() -> list[str]:
    """Returns the rules that hold in a header and in the document itself."""
    return [
        "default-src 'none'",
        f"script-src {' '.join(map(_hash, _scripts()))}",
        f"style-src {_hash(_text('app.css'))}",
        "img-src data:",
        "connect-src 'none'",
        "form-action 'none'",
        "base-uri 'none'",
        # markup can be made from text in one place only, which has this policy (app/parts.js)
        "require-trusted-types-for 'script'",
        "trusted-types busco",
    ]


def _meta(rules: list[str]) -> str:
    return f'<meta http-equiv="Content-Security-Policy" content="{escape("; ".join(rules))}">\n'


def _filled(name: str, values: dict[str, str]) -> str:
    """Returns a page with its placeholders replaced, in one step: a value can contain what looks like a placeholder."""

    def value(found: re.Match[str]) -> str:
        return values[found[1]]

    return re.sub(r"\{\{ (\w+) \}\}", value, _text(name))


def _json(value: object) -> str:
    return str(htmlsafe_json_dumps(value, separators=(",", ":")))


@functools.cache
def _scripts() -> tuple[str, ...]:
    return tuple(map(_script, _SCRIPTS))


@functools.cache
def _script(name: str) -> str:
    """Returns a script that can be inlined.

    Raises:
        ValueError: the script contains the end of its own element.
    """
    text = re.sub(r"^//# sourceMappingURL=.*$", "", _text(name), flags=re.MULTILINE)
    if re.search(r"</script|<!--", text, re.IGNORECASE):
        raise ValueError(f"app/{name} can't be inlined: write </script and <!-- in parts")
    return text


@functools.cache
def _text(name: str) -> str:
    return (files(__package__) / "app" / name).read_text(encoding="utf-8")


@functools.cache
def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
