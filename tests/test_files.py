"""Tables as files and text."""

import pytest

from repflow.files import markdown_table, read_csv, text_table, write_csv

ROWS = [{"name": "a", "ms": 1.23456, "n": 5}, {"name": "long", "ms": 12345.6, "n": None}]


def test_a_file_has_each_value_under_its_own_column(tmp_path):
    file = tmp_path / "a.csv"
    write_csv(file, [ROWS[0], dict(reversed(ROWS[1].items()))])
    assert file.read_bytes() == b"name,ms,n\na,1.23456,5\nlong,12345.6,\n"
    assert read_csv(file)[1] == {"name": "long", "ms": "12345.6", "n": ""}
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("other", [{"name": "b", "ms": 1.0}, {"name": "b", "ms": 1.0, "n": 2, "more": 3}])
def test_a_row_with_other_columns_is_refused(tmp_path, other):
    differing = "in (more|n); give all rows the same columns"
    with pytest.raises(ValueError, match=differing):
        write_csv(tmp_path / "a.csv", [*ROWS, other])
    with pytest.raises(ValueError, match=differing):
        text_table([*ROWS, other])
    assert not list(tmp_path.iterdir())


def test_a_text_table_is_aligned_by_whole_columns():
    assert text_table(ROWS) == "name     ms  n\na     1.235  5\nlong  12346"
    assert text_table([{"n": None, "ours": 12.5}, {"n": 10, "ours": "not run"}]) == " n  ours\n    12.5\n10  not run"


def test_a_markdown_table():
    head, lines = ["method", "ours"], [["a", "1.2"], ["long", "not run"]]
    assert markdown_table(head, lines) == "| method | ours |\n| --- | --- |\n| a | 1.2 |\n| long | not run |"
    assert markdown_table(head, lines, aligned=True).splitlines() == [
        "| method | ours    |",
        "| ------ | ------- |",
        "| a      | 1.2     |",
        "| long   | not run |",
    ]
