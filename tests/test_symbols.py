"""One symbol, one meaning: docs/symbols.md against the formulas of the notebooks."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = {path.name[:2]: path for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}
FAMILIES = ({"01", "02", "03", "04", "06"}, {"05"})  # within each a symbol has one meaning
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", re.DOTALL)
# No symbols: words, the differential, the name of a norm, and commands other than the letters below.
LETTERS = "delta|ell|varepsilon|theta|lambda|rho|tau|nabla"
OTHER = re.compile(
    r"\\(?:text|mathrm|operatorname|tag|begin|end)\s*\{[^{}]*\}|d(?=\\mathbf x)|L\^1"
    rf"|(?<!_)\\(?!(?:mathbf|tilde|{LETTERS})(?![A-Za-z]))[A-Za-z]+"
)
SYMBOL = re.compile(
    rf"(\\(?:mathbf|tilde)\s*)?(\\(?:{LETTERS})(?![A-Za-z])|[A-Za-z])(?:_(\{{[^{{}}]*\}}|\\?[A-Za-z]+|\d))?"
)


def symbols(text):
    """Of a text's formulas: style (bold or tilde), letter and index of each symbol."""
    formulas = (re.sub(r"\\mathrm\{(\w)\}", r"\1", "".join(parts)) for parts in FORMULA.findall(text))
    found = (match for formula in formulas for match in SYMBOL.findall(OTHER.sub(" ", formula)))
    return {(style.strip(), letter, index.strip("{}")) for style, letter, index in found}


def lines(text):
    """The lines of tables that begin with a formula, as lists of their columns."""
    return [re.split(r"\s*\|\s*", line)[1:-1] for line in re.findall(r"^\| \$.*\|$", text, re.MULTILINE)]


def texts(path):
    return "\n\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")


TABLE = lines((ROOT / "docs" / "symbols.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: " ".join(sorted(family)))
def test_no_symbol_has_two_meanings(family):
    listed = [symbol for line in TABLE if family & set(line[-1].split()) for symbol in symbols(line[0])]
    assert listed
    assert sorted(listed) == sorted(set(listed))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_table_has_the_symbols_of_a_notebook_and_no_others(name):
    meanings = {symbol: line[1] for line in TABLE if name in line[-1].split() for symbol in symbols(line[0])}
    found = set()
    for style, letter, index in symbols(texts(NOTEBOOKS[name])):
        # An index that has no line of its own only counts, and a component has the line of its arrow.
        candidates = (style, letter, index), (style, letter, ""), (r"\mathbf", letter, "")
        known = [meanings[symbol] for symbol in candidates if symbol in meanings]
        assert known, f"docs/symbols.md has no line for {style}{letter}_{index} that names notebook {name}"
        found.add(known[0])
    assert found == set(meanings.values()), "docs/symbols.md names this notebook where it has no such symbol"


def test_the_first_notebook_s_notation_is_that_of_the_table():
    notation = [(symbol, meaning, unit) for symbol, _, meaning, unit in lines(texts(NOTEBOOKS["01"]))]
    assert len(notation) > 15
    assert set(notation) <= {tuple(line[:3]) for line in TABLE}
