"""The public names and their signatures, a line each: `python tools/api.py` writes docs/api.txt.

The tests compare it with the source, so that no public name moves or changes unseen; CHANGELOG.md tells users of it.
"""

from collections.abc import Iterator
from pathlib import Path

from repflow.lab.reference import read_modules

FILE = Path(__file__).parents[1] / "docs" / "api.txt"


def lines() -> Iterator[str]:
    """Every public function, class and method, as the reference page has them."""
    for module in read_modules():
        for part in module["parts"]:
            name = f"{module['name']}.{part['name']}"
            yield name + part["signature"]
            for method in part["parts"]:
                yield f"{name}.{method['name']}{method['signature']}"


if __name__ == "__main__":
    FILE.write_text("\n".join(lines()) + "\n", encoding="utf-8")
