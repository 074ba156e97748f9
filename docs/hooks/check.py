"""Checks a built site: nothing is loaded from elsewhere, and every link leads somewhere.

python docs/hooks/check.py FOLDER
"""

import html.parser
import pathlib
import re
import sys
import urllib.parse

LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(html.parser.HTMLParser):
    """What a page loads, links to, and can be linked to at."""

    def __init__(self, text: str):
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Sorts the addresses of a tag."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if (address := given.get(LOADS.get(tag, ""))) is not None and given.get(
            "rel"
        ) != "canonical":
            self.loads.append(address)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])


def faults(site: pathlib.Path) -> list[str]:
    """What is wrong with a site, in words.

    Args:
        site: Its folder.
    """
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        where = path.relative_to(site)
        for address in page.loads:
            if re.match(r"([a-z]+:)?//", address):
                found.append(f"{where} loads {address}")
        for address in page.loads + page.links:
            parts = urllib.parse.urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            name = urllib.parse.unquote(parts.path)
            base = site if name.startswith("/") else path.parent  # of the page for what is missing
            target = (base / name.lstrip("/")).resolve() if name else path
            if not target.exists():
                found.append(f"{where} links to {address}, which is not there")
                continue
            anchor = urllib.parse.unquote(parts.fragment)
            if anchor and target in pages and anchor not in pages[target].anchors:
                found.append(f"{where} links to {address}, of which the anchor is not there")
    for path in site.rglob("*.css"):
        for address in re.findall(r"url\(\s*['\"]?([^)'\"]+)", path.read_text()):
            if address.startswith("data:") or address.startswith("#"):
                continue
            if re.match(r"([a-z]+:)?//", address):
                found.append(f"{path.relative_to(site)} loads {address}")
            elif not (path.parent / address.partition("?")[0].partition("#")[0]).exists():
                found.append(f"{path.relative_to(site)} loads {address}, which is not there")
    return found


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1]).resolve()
    wrong = faults(folder)
    print(*wrong, sep="\n")
    count = len(list(folder.rglob("*.html")))
    print(f"{count} pages checked, {len(wrong)} faults")
    sys.exit(bool(wrong) or not count)
