"""Parts of a Markdown file that a tool writes: what stands between <!-- NAME --> and <!-- end of NAME -->."""

from collections.abc import Mapping
from pathlib import Path


def marked(text: str, name: str) -> tuple[str, str, str]:
    """A text before, between and after the markers of this name."""
    before, begin, rest = text.partition(f"<!-- {name} -->\n")
    between, end, after = rest.partition(f"<!-- end of {name} -->\n")
    return before + begin, between, end + after


def write_marked(file: Path, parts: Mapping[str, str]) -> None:
    """Write each part, by its name, between its markers."""
    text = file.read_text(encoding="utf-8")
    for name, content in parts.items():
        before, _, after = marked(text, name)
        text = before + content + after
    file.write_text(text, encoding="utf-8")
