"""Follow every link of the built site: `make site` ends with it.

Zensical checks the links of the Markdown files. This reads the HTML that came of them, so that navigation, language
selector, API reference and images are checked too; addresses elsewhere are not asked.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

SITE = Path(__file__).resolve().parents[1] / "site"


class Page(HTMLParser):
    """What a page links to and what can be linked to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links, self.anchors = set[str](), {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value is not None:
                self.links.add(value)
            if name in ("id", "name") and value:
                self.anchors.add(value)


def broken_links(site: Path) -> list[str]:
    """Each link inside the site that leads nowhere, and by which page."""
    pages = {file: Page(file.read_text(encoding="utf-8")) for file in sorted(site.rglob("*.html"))}
    broken = []
    for file, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or file.name == "404.html":  # its links begin at the server's root
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            found = target in pages and unquote(parts.fragment) in pages[target].anchors
            if not found and not (target.is_file() and target not in pages):
                broken.append(f"{file.relative_to(site)}: {link}")
    return broken


def main() -> int:
    """Say what is broken."""
    broken = broken_links(SITE)
    for line in broken:
        print(f"leads nowhere: {line}", file=sys.stderr)
    print(f"{len(list(SITE.rglob('*.html')))} pages, {len(broken)} broken links")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
