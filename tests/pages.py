"""A page of HTML, parsed strictly: its sections, tables and pictures."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

VOID = {"meta", "img", "br", "wbr"}


class Page(HTMLParser):
    """The tree of a page, each element closed by its own tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._builder = ET.TreeBuilder()
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open
        self.root = self._builder.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._builder.start(tag, {name: value or "" for name, value in attrs})
        if tag in VOID:
            self._builder.end(tag)
        else:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag == self._open.pop()
        self._builder.end(tag)

    def handle_data(self, data: str) -> None:
        if self._open:
            self._builder.data(data)

    def section(self, beginning: str) -> ET.Element:
        (found,) = (s for s in self.root.iter("section") if text_of(s.find("h2")).startswith(beginning))
        return found

    def rows(self, beginning: str) -> dict[str, list[ET.Element]]:
        """The cells of each row of the table whose caption begins so."""
        (found,) = (t for t in self.root.iter("table") if text_of(t.find("caption")).startswith(beginning))
        return {text_of(row.find("th")): row.findall("td") for row in found.findall("tbody/tr")}

    def table(self, beginning: str) -> dict[str, list[tuple[str, str]]]:
        """The (text, interval) of the cells of each row."""
        rows = self.rows(beginning).items()
        return {name: [(cell.text or "", text_of(cell.find("small"))) for cell in cells] for name, cells in rows}

    def pictures(self) -> list[tuple[str, ET.Element]]:
        """(alternative text, SVG) of each picture."""
        images = list(self.root.iter("img"))
        coded = [image.attrib["src"].removeprefix("data:image/svg+xml;base64,") for image in images]
        return [
            (image.attrib["alt"], ET.fromstring(base64.b64decode(code, validate=True)))
            for image, code in zip(images, coded, strict=True)
        ]


def text_of(element: ET.Element | None) -> str:
    return "" if element is None else " ".join("".join(element.itertext()).split())
