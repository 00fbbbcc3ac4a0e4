import argparse
import multiprocessing

import pytest

from repflow.cli import compare as command
from repflow.files import read_csv
from repflow.lab.parameters import UsageError
from repflow.lab.results import add_result, compare
from repflow.records import environment, paper_table

PAPER = {
    "2D RGB": {"kinetics400": "61.3", "hmdb51": "53.4", "hmdb51_kinetics": ""},
    "2D + Rep-Flow": {"kinetics400": "", "hmdb51": "73.5", "hmdb51_kinetics": "76.4"},
    "OFF (RGB only)": {"kinetics400": "", "hmdb51": "57.1", "hmdb51_kinetics": ""},
}
RUN = {"system": "repflow_2d", "backbone": "resnet50_2d", "data_set": "hmdb51", "fold": 1, "clips": 10, "crops": 3,
       "seed": 0, "seconds": 60.0}  # fmt: skip


def measures(top1, evaluated=1500, expected=1530):
    found = {"top1": top1, "top1_low": top1 - 2, "top1_high": top1 + 2, "top5": 90.0, "top5_low": 89.0, "top5_high": 91}
    return found | {"evaluated": evaluated, "expected": expected}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "ours.csv"


def line_of(table, method, data_set):
    (line,) = [line for line in table if (line["method"], line["data_set"]) == (method, data_set)]
    return line


def test_a_result_is_appended_with_machine_and_versions(file):
    add_result(file, measures(70.25), **RUN)
    first = file.read_text()
    add_result(file, measures(50.0), **RUN | {"fold": 2})
    assert file.read_text().startswith(first)
    row, other = read_csv(file)
    numbers = {"fold": "1", "clips": "10", "crops": "3", "seed": "0", "top1": "70.25", "top5": "90", "seconds": "60"}
    counts = {"ci_low": "68.25", "ci_high": "72.25", "evaluated": "1500", "expected": "1530"}
    versions = {name: "" if value is None else str(value) for name, value in environment().items()}
    assert row | numbers | counts | versions == row
    assert other["fold"] == "2"
    assert not [path for path in file.parent.iterdir() if path != file]


def test_results_that_come_together_are_all_kept(file):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["repflow.lab.results"])
    together = context.Barrier(8)
    jobs = [context.Process(target=add_after, args=(together, file, seed)) for seed in range(8)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0] * 8
    assert {row["seed"] for row in read_csv(file)} == {str(seed) for seed in range(80)}
    assert len(read_csv(file)) == 80


def add_after(together, file, seed):
    together.wait()
    for i in range(10):
        add_result(file, measures(70.0), **RUN | {"seed": seed + 8 * i})


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"system": "2D RGB"}, "system: expected one of rgb_2d"),
        ({"backbone": "i3d"}, "backbone: expected one of resnet50_2d"),
        ({"data_set": "ucf101"}, "data_set: expected one of kinetics400"),
        ({"fold": None}, "fold: expected 1 or 2 or 3 on hmdb51"),
        ({"fold": 4}, "fold: expected 1 or 2 or 3"),
        ({"data_set": "kinetics400"}, "fold: expected None on kinetics400, got 1"),
    ],
)
def test_a_result_of_nothing_we_know_is_refused(file, changed, reason):
    with pytest.raises(UsageError, match=reason):
        add_result(file, measures(70.0), **RUN | changed)
    assert not file.exists()


def test_a_file_of_other_columns_is_left_as_it_is(file):
    file.write_text("system,top1\nrgb_2d,3\n")
    with pytest.raises(UsageError, match="expected the columns system, backbone"):
        add_result(file, measures(70.0), **RUN)
    assert file.read_text() == "system,top1\nrgb_2d,3\n"


def test_ours_is_the_mean_over_folds_of_the_mean_over_seeds(file):
    for fold, seed, top1 in ((1, 0, 60.0), (1, 1, 70.0), (2, 0, 80.0), (2, 0, 90.0)):  # fold 2 was repeated: 90 counts
        add_result(file, measures(top1), **RUN | {"fold": fold, "seed": seed})
    line = line_of(compare(read_csv(file), PAPER), "2D + Rep-Flow", "HMDB51")
    assert (line["paper"], line["ours"], line["interval"]) == (73.5, 77.5, None)
    assert line["delta"] == pytest.approx(4.0)
    assert line["runs"] == "resnet50_2d, 10 × 3 views, folds 1, 2 of 3, 2 seeds; evaluated 4500 of 4590"


def test_a_single_run_has_an_interval_and_a_delta_below_zero(file):
    add_result(file, measures(50.0), **RUN | {"system": "rgb_2d", "data_set": "kinetics400", "fold": None})
    line = line_of(compare(read_csv(file), PAPER), "2D RGB", "Kinetics-400")
    assert line["delta"] == pytest.approx(-11.3)
    assert line["interval"] == "48.0 to 52.0"
    assert line["runs"] == "resnet50_2d, 10 × 3 views, 1 seed; evaluated 1500 of 1530"


def test_protocols_stand_apart(file):
    for changed in ({}, {"clips": 1}, {"backbone": "resnet18_2d"}):
        add_result(file, measures(50.0), **RUN | changed)
    lines = [line for line in compare(read_csv(file), PAPER) if line["ours"] != "not run"]
    assert [line["runs"].split(", fold")[0] for line in lines] == [
        "resnet50_2d, 10 × 3 views",
        "resnet50_2d, 1 × 3 views",
        "resnet18_2d, 10 × 3 views",
    ]


def test_every_figure_of_the_paper_has_a_line_and_says_not_run_where_nothing_was():
    table = compare([])
    figures = {
        (method, data_set): float(row[data_set])
        for method, row in paper_table().items()
        for data_set in ("kinetics400", "hmdb51", "hmdb51_kinetics")
        if row[data_set]
    }
    names = {"Kinetics-400": "kinetics400", "HMDB51": "hmdb51", "HMDB51 + Kinetics": "hmdb51_kinetics"}
    assert {(line["method"], names[line["data_set"]]): line["paper"] for line in table} == figures
    assert len(table) == len(figures)
    assert {(line["ours"], line["delta"]) for line in table} == {("not run", None)}


def test_what_the_paper_has_not_comes_last(file):
    add_result(file, measures(80.0), **RUN | {"backbone": "tiny_2d", "data_set": "synthetic_motion", "fold": None})
    add_result(file, measures(40.0), **RUN | {"data_set": "kinetics400", "fold": None})
    table = compare(read_csv(file), PAPER)
    assert [(line["method"], line["data_set"], line["paper"], line["ours"], line["delta"]) for line in table[-2:]] == [
        ("2D + Rep-Flow", "Kinetics-400", None, 40.0, None),
        ("2D + Rep-Flow", "SyntheticMotion", None, 80.0, None),
    ]
    assert len(table) == 5 + 2


def test_the_command_prints_the_paper_beside_ours(file, capsys):
    add_result(file, measures(75.0), **RUN)
    parser = argparse.ArgumentParser()
    command.add(parser)
    assert command.run(parser.parse_args(["--ours", str(file)])) == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["method", "data set", "paper", "ours", "delta", "interval", "runs"]
    assert ["2D + Rep-Flow", "HMDB51", "73.5", "75.0", "1.5", "73.0 to 77.0"] in [line[:6] for line in lines]
    assert ["OFF (RGB only)", "HMDB51", "57.1", "not run", "", "", ""] in lines
    with pytest.raises(FileNotFoundError):
        command.run(parser.parse_args(["--ours", str(file.with_name("no.csv"))]))
