"""The frame of HTML pages: their head, the style that all share, by day and by night, and what a browser may load for them."""

from collections.abc import Sequence
from html import escape

_STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b1f24; --soft: #59636e; --line: #d9dee3; --link: #0b5cad;
}
@media (prefers-color-scheme: dark) {
  :root { --page: #111418; --card: #1a1e24; --ink: #e8ebee; --soft: #a3adb8; --line: #343b44; --link: #8ec2ff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
main { margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .5rem; }
""".strip()

TABLES = """
.scroll { overflow-x: auto; max-width: 100%; }
.scroll:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .5rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: normal; }
thead th { color: var(--soft); font-size: .85rem; font-weight: 600; vertical-align: bottom; }
th.n, td.n { text-align: right; }
td.n { white-space: nowrap; }
td.wrap { min-width: 13rem; overflow-wrap: anywhere; }
@media print { .scroll { overflow: visible; } }
""".strip()
"""Rules for tables of numbers, each in an element of the class `scroll`."""

FIGURES = """
.figures { display: grid; gap: 0 1.5rem; }
figure { margin: .5rem 0 1rem; min-width: 0; }
figcaption { font-weight: 600; margin-bottom: .35rem; }
figure img { display: block; height: auto; background: #fff; border-radius: .35rem; }
""".strip()
"""Rules for plots, each with a caption."""

# Whatever a page should hold by mistake, a browser loads nothing for it and runs nothing of it.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def html(title: str, style: str, parts: Sequence[str]) -> str:
    """Return a whole page, which needs no network; equal arguments give equal text.

    Args:
        title: plain text.
        style: the page's own rules, which come after those that all share.
        parts: HTML, one below the other; empty ones are left out.
    """
    head = (
        "<meta charset='utf-8'>\n<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<meta http-equiv='Content-Security-Policy' content=\"{_POLICY}\">\n"
        f"<link rel='icon' href='data:,'>\n<title>{escape(title)}</title>\n<style>\n{_STYLE}\n{style}\n</style>"
    )
    body = "\n".join(["<main>", *filter(None, parts), "</main>"])
    return f"<!doctype html>\n<html lang='en'>\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n"
