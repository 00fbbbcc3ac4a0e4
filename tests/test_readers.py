"""docs/readers.md and docs/flow.md: this package reads the files as they are meant, and the tables are the results'."""

from pathlib import Path

import av
import flow_programs
import numpy as np
import pytest
import readers
from markers import marked
from numbered import ORIENTATIONS, drawn, seen, turned
from numbered_files import FILES, make, truth
from readers_worker import Repflow, replies

from repflow.files import read_csv

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("name", FILES)
def test_this_package_reads_every_file_right(tmp_path, name):
    if FILES[name].options["codec"] not in av.codecs_available:
        pytest.skip(f"this FFmpeg cannot write {name}")
    lines = list(replies(Repflow, str(make(name, tmp_path)), len(truth(name)[0])))
    answers = readers.verdicts(name, {line["question"]: line for line in lines})
    assert answers == dict.fromkeys(readers.QUESTIONS, "right")


@pytest.mark.parametrize("how", ORIENTATIONS)
def test_pictures_tell_their_number_and_how_they_stand(how):
    for number in (0, 1, 37, 63):
        answer = seen(turned(drawn(number, 161, 97), how))
        assert answer["number"] == number
        np.testing.assert_array_equal(answer["colours"], seen(drawn(number, 161, 97))["colours"])
    assert (tuple(answer["how"]) == (False, False, False)) == (how == (False, False, False))


def test_noise_and_mixed_pictures_have_no_number():
    assert seen(np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8))["number"] is None
    assert seen(drawn(21, 160, 96) // 2 + drawn(42, 160, 96) // 2)["number"] is None


def test_a_reader_s_faults_are_told():
    frame = seen(drawn(3, 160, 96))
    raised = {"raises": "EOFError: no more"}
    answers = readers.verdicts("plain.mp4", {"count": {"answer": 40}, "in order": {"answer": [frame]}, "last": raised})
    assert answers == {
        "count": "wrong: 40 for 41",
        "in order": "wrong: 1 frames for 41, 3 for 0",
        "last": "raises: EOFError: no more",
        "first": "ends its process",
        "random": "",
        "colour": "right",
        "as shown": "right",
    }
    assert readers.cell(answers) == "wrong: count, in order; raises: last; ends its process"


def test_every_reader_is_asked_about_every_file():
    rows = read_csv(readers.RESULT)
    assert {(row["file"], row["reader"]) for row in rows} == {
        (file, name) for file in FILES for name in readers.READERS
    }


@pytest.mark.parametrize(("page", "tool"), [("readers.md", readers), ("flow.md", flow_programs)])
def test_the_tables_are_those_of_the_results(page, tool):
    text = (DOCS / page).read_text(encoding="utf-8")
    for name, part in tool.document(read_csv(tool.RESULT)).items():
        assert marked(text, name)[1] == part
