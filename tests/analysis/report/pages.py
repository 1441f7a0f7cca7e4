"""A report as the tests read it."""

import json
from html.parser import HTMLParser
from pathlib import Path

from adaptsft.report import main

VOID = {"meta", "input", "img", "br", "hr", "link", "image"}


class Page(HTMLParser):
    """Everything that a test asks of a page; complains of tags that do not close."""

    def __init__(self, path: Path):
        super().__init__(convert_charrefs=True)
        self.source = path.read_text()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.content: dict[str, list[str]] = {"script": [], "style": []}
        self.words: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self.open, self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        inside = self.open[-1] if self.open else None
        self.content.get(inside, self.words).append(data)

    @property
    def hover(self) -> dict:
        return json.loads(self.content["script"][0])


def report(out: Path, *arguments: object) -> Page:
    assert main([*map(str, arguments), "--out", str(out), "--no-png"]) == 0
    return Page(out / "report.html")


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def list_titles(page: Page) -> dict[str, str]:
    return {
        a["data-chart"]: a["aria-label"]
        for tag, a in page.tags
        if tag == "svg" and "data-chart" in a
    }
