"""Timings: what is measured, what is written, and what is refused. No time is held against a bound."""

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import readme_tables
import torch
from conftest import PATIENCE
from PIL import Image

from repflow import tvl1
from repflow.cli import main
from repflow.data import SyntheticMotion
from repflow.files import read_csv, write_csv
from repflow.lab.bench import scaling, systems, timing, video
from repflow.lab.bench import solver as benchmark
from repflow.lab.bench.flow import end_point_error, made_pair, read_pairs
from repflow.lab.bench.solver import PASSES, Problem
from repflow.models import build_model
from repflow.records import circumstances, read_timings, results_folder
from repflow.video import read_clip

ROOT = Path(__file__).parents[1]
TINY = ["--channels", "2", "--pairs", "2", "--size", "8", "--iterations", "3", "--repeats", "1", "--device", "cpu"]
SMALL = ["--channels", "8", "--pairs", "4", "--size", "64", "--iterations", "10", "--repeats", "1", "--device", "cpu"]
MACHINE = {"cpu", "cpus", "gpu", "driver", "threads", "python", "torch", "repflow", "commit", "platform", "date"}
PROGRAMS = ["repflow, reference", "repflow, cpu", "OpenCV DualTVL1", "OpenCV DIS", "scikit-image TV-L1"]


def run(*arguments):
    """The exit code of `repflow bench`, and the rows of the file it wrote."""
    *_, file = arguments
    return main(["bench", *map(str, arguments)]), read_csv(file)


@pytest.fixture(scope="module")
def solver(tmp_path_factory):
    code, rows = run("solver", *SMALL, "--out", tmp_path_factory.mktemp("solver") / "solver.csv")
    assert code == 0
    return {(row["part"], row["engine"], row["pass"]): row for row in rows}


@pytest.fixture
def folder(tmp_path):
    """A pair in Middlebury's layout, with some flow unknown, beside folders that are none."""
    pair = made_pair(48, 64)
    unknown = pair.flow.copy()
    unknown[:, :4] = 1.67e9
    place = tmp_path / "set" / "Turning"
    place.mkdir(parents=True)
    for number, frame in ((10, pair.first), (11, pair.second)):
        Image.fromarray(frame).save(place / f"frame{number}.png")
    head = np.array([202021.25], np.float32).tobytes() + np.array([64, 48], np.int32).tobytes()
    (place / "flow10.flo").write_bytes(head + np.float32(unknown).transpose(1, 2, 0).tobytes())
    (tmp_path / "set" / "Hidden").mkdir()
    return place.parent


def test_every_engine_and_pass_has_a_row(solver):
    whats = [("function", "reference"), ("function", "cpu"), *(("layer", e) for e in ("reference", "cpu", "official"))]
    assert list(solver) == [(*what, name) for what in whats for name in PASSES]
    for row in solver.values():
        assert 0 < float(row["min_ms"]) <= float(row["median_ms"])
        assert float(row["iqr_ms"]) == 0  # of a single time


def test_speedups_are_ratios_of_medians(solver):
    for (part, _, name), row in solver.items():
        for other in ("reference", "official"):
            if part == "function" and other == "official":
                assert row["speedup_official"] == ""
            else:
                ratio = float(solver[part, other, name]["median_ms"]) / float(row["median_ms"])
                assert float(row[f"speedup_{other}"]) == pytest.approx(ratio, rel=1e-4)


def test_rows_name_settings_machine_and_versions(solver):
    for row in solver.values():
        assert row.keys() >= MACHINE
        settings = {name: row[name] for name in ("channels", "pairs", "size", "iterations", "repeats", "device")}
        assert list(settings.values()) == ["8", "4", "64", "10", "1", "cpu"]
        assert row["torch"] == torch.__version__
        assert row["numba"]


@pytest.mark.parametrize("part", ["function", "layer"])
def test_what_the_fast_engine_saves_does_not_grow_with_iterations(part):
    def saved(engine, iterations):
        problem = Problem(channels=2, pairs=2, size=8, iterations=iterations)
        counts = {benchmark.saved_bytes(benchmark.task_of(problem, part, engine, name)) for name in PASSES}
        assert len(counts) == 1  # the backward pass keeps nothing more
        return counts.pop()

    assert saved("cpu", 3) == saved("cpu", 12)
    assert saved("reference", 12) > 3 * saved("reference", 3)


def test_a_storage_saved_twice_counts_once():
    x = torch.ones(100, requires_grad=True)
    assert benchmark.saved_bytes(lambda: x * x) == 400
    assert benchmark.saved_bytes(lambda: x[:50] * x[50:]) == 400


@pytest.mark.parametrize("part", ["function", "layer"])
def test_all_engines_of_a_part_get_the_same_numbers(part):
    problem = Problem(channels=2, pairs=2, size=8, iterations=3)
    reference, fast = (benchmark.task_of(problem, part, engine, PASSES[1])() for engine in ("reference", "cpu"))
    torch.testing.assert_close(reference, fast)


@pytest.mark.skipif(platform.system() != "Linux", reason="the peak is measured on Linux alone")
def test_peak_memory_holds_what_is_saved(solver):
    reference, fast = (solver["function", engine, PASSES[1]] for engine in ("reference", "cpu"))
    assert float(reference["saved_mib"]) < float(reference["peak_mib"]) < 1.2 * float(reference["saved_mib"])
    assert 0 < float(fast["peak_mib"]) < float(reference["peak_mib"]) / 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_s_rows_have_peaks_too():
    rows = benchmark.time_solver(Problem(channels=2, pairs=2, size=8, iterations=3, device="cuda"), repeats=1)
    assert {row["engine"] for row in rows} >= {"reference", "official"}
    assert all(row["peak_mib"] > 0 for row in rows)


def test_tvl1_on_a_folder_of_pairs(folder, tmp_path, capsys):
    code, rows = run("tvl1", "--pairs", folder, "--repeats", 1, "--device", "cpu", "--out", tmp_path / "tvl1.csv")
    assert code == 0
    assert [row["method"] for row in rows] == PROGRAMS
    for row in rows:
        assert (row["pair"], row["height"], row["width"], row["note"]) == ("Turning", "48", "64", "")
        assert float(row["median_s"]) > 0
        assert row.keys() >= MACHINE
        assert row["cv2"]
        assert row["skimage"]
    errors = [float(row["error_px"]) for row in rows]
    assert errors[0] < 0.2
    assert errors[1] == pytest.approx(errors[0], abs=0.01)
    assert max(errors) < 1
    printed = capsys.readouterr().out
    assert all(name in printed for name in PROGRAMS)
    assert len({line.index("Turning") for line in printed.splitlines() if "Turning" in line}) == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != "set"] == ["tvl1.csv"]


def test_a_missing_program_is_reported(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)  # an import of it then fails
    code, rows = run("tvl1", "--pairs", folder, "--repeats", 1, "--device", "cpu", "--out", tmp_path / "tvl1.csv")
    assert code == 0
    notes = {row["method"]: (row["note"], row["median_s"], row["error_px"]) for row in rows}
    assert list(notes) == PROGRAMS
    assert notes["OpenCV DIS"] == notes["OpenCV DualTVL1"] == ("not installed", "", "")
    assert notes["scikit-image TV-L1"][0] == ""
    stdout, stderr = capsys.readouterr()
    assert stdout.count("not installed") == 2
    assert "pip install -e '.[bench]'" in stderr


def test_the_made_pair_moves_as_it_says():
    pair = made_pair(120, 160, speed=2.0)
    assert pair.first.dtype == np.uint8
    assert pair.first.shape == pair.second.shape == pair.flow.shape[1:] == (120, 160)
    assert end_point_error(np.zeros_like(pair.flow), pair.flow) == pytest.approx(2, rel=0.2)
    u, v = pair.flow  # clockwise: to the right above the centre, down on its right
    assert u[0].min() > 0
    assert v[:, -1].min() > 0
    assert end_point_error(tvl1(pair.first, pair.second).numpy(), pair.flow) < 0.05


def test_end_point_error_passes_over_what_is_unknown():
    true = np.zeros((2, 2, 2))
    true[0, 0] = 1e10, 3
    true[1, 0] = 1e10, 4
    assert end_point_error(np.zeros((2, 2, 2)), true) == pytest.approx(5 / 3)


@pytest.mark.parametrize("damage", [b"", b"PIEH", b"PIEX" + bytes(8 + 48 * 64 * 8), b"PIEH" + bytes(8)])
def test_a_damaged_flow_file_is_one_line(folder, damage, capsys):
    (folder / "Turning" / "flow10.flo").write_bytes(damage)
    assert main(["bench", "tvl1", "--pairs", str(folder)]) == 1
    stdout, stderr = capsys.readouterr()
    assert (stdout, stderr.count("\n")) == ("", 1)
    assert "flow10.flo': expected a .flo file" in stderr


def test_pairs_without_flow_are_passed_over(folder):
    assert [pair.name for pair in read_pairs(folder)] == ["Turning"]


def test_circumstances_name_what_was_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "loaded", type("Module", (), {"__version__": "7.1"}))
    facts = circumstances("loaded", "not_loaded")
    assert (facts["loaded"], facts["not_loaded"]) == ("7.1", None)
    assert facts.keys() >= MACHINE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["solver", "--channels", "0"], "--channels: expected a whole number >= 1, got 0"),
        (["solver", "--size", "1"], "--size: expected a whole number >= 2, got 1"),
        (["solver", "--iterations", "0"], "--iterations: expected a whole number >= 1, got 0"),
        (["tvl1", "--repeats", "-1"], "--repeats: expected a whole number >= 1, got -1"),
        (["tvl1", "--pairs", "nowhere"], "--pairs nowhere: expected subfolders with frame10.png"),
        (["solver", "--device", "cuda"], "--device cuda: PyTorch finds no GPU here"),
    ],
)
def test_bad_options_are_one_line_and_start_nothing(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", *arguments]) == 2
    stdout, stderr = capsys.readouterr()
    assert (stdout, stderr.count("\n")) == ("", 1)
    assert message in stderr


@pytest.mark.parametrize("arguments", [[], ["solvers"], ["solver", "--device", "tpu"], ["solver", "--chan", "2"]])
def test_the_parser_refuses_with_2(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", *arguments])
    assert "usage: repflow" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_one_line_before_anything_runs(tmp_path, capsys):
    assert main(["bench", "solver", "--out", str(tmp_path / "nowhere" / "a.csv")]) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(("phase", "repeats"), [(b"timing", "100000"), (b"measuring memory", "1")])
def test_ctrl_c_leaves_no_file(tmp_path, phase, repeats):
    command = [sys.executable, "-m", "repflow", "bench", "solver", *TINY, "--repeats", repeats]
    command += ["--out", str(tmp_path / "a.csv")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        seen = b""
        while phase not in seen:
            seen += os.read(process.stderr.fileno(), 1000) or pytest.fail(seen.decode())
        os.killpg(process.pid, signal.SIGINT)
        stderr = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept_while_timing():
    """Or each round would fetch its tensors anew from the system, page by page: in a new process."""
    script = """if True:
        import resource, torch
        from repflow.lab.bench.timing import time_in_turn
        task = {"two tensors of 40 MiB": lambda: torch.ones(10 << 20) + 1}
        time_in_turn(task, repeats=4)  # until the tensors have found their places
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        time_in_turn(task, repeats=4)
        pages = 5 * 2 * (40 << 20) // resource.getpagesize()
        print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / pages)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.5


def test_what_a_gpu_has_no_memory_for_does_not_fit():
    def too_large():
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def wrong():
        raise ValueError("not for want of memory")

    assert timing.fits_memory(lambda: None)
    assert not timing.fits_memory(too_large)
    with pytest.raises(ValueError, match="not for want"):
        timing.fits_memory(wrong)


def test_readers_of_clips(tmp_path):
    SyntheticMotion.make(tmp_path / "set", train=1, test=0, unused=0, size=48, frames=40)
    path = next(tmp_path.glob("set/left/*.avi"))
    code, rows = run("video", path, "--clips", "2", "--repeats", "1", "--out", tmp_path / "video.csv")
    assert code == 0
    assert {(row["reader"], row["workers"]) for row in rows} >= {
        (name, workers) for name in ("repflow", "PyAV, to_ndarray", "OpenCV") for workers in "12"
    }
    for row in rows:
        if row["note"]:
            assert (row["reader"], row["clips_per_s"]) == ("torchcodec", "")
        else:
            assert float(row["clips_per_s"]) == pytest.approx(2 / float(row["median_s"]), rel=1e-4)
    assert [row["speedup_plain"] for row in rows if row["reader"] == "PyAV, to_ndarray"] == ["1", "1"]


@pytest.mark.parametrize("read", [video.read_plainly, video.read_by_opencv])
def test_all_readers_read_the_same_frames(tmp_path, read):
    SyntheticMotion.make(tmp_path / "set", train=1, test=0, unused=0, size=48, frames=40)
    path = str(next(tmp_path.glob("set/left/*.avi")))
    ours, theirs = read_clip(path, 7, 5), read(path, 7, 5)
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).mean() < 2  # they convert colours each in their way
    assert np.abs(ours[1:].astype(int) - theirs[:-1]).mean() > 4


def test_a_video_too_short_for_the_readers(tmp_path, capsys):
    SyntheticMotion.make(tmp_path / "set", train=1, test=0, unused=0, size=48, frames=9)
    path = next(tmp_path.glob("set/left/*.avi"))
    assert main(["bench", "video", str(path)]) == 1
    assert "at least 32 frames, got 9" in capsys.readouterr().err


SECONDS = {
    ("decode", "repflow.video"): 0.01,
    ("tvl1", "repflow, cpu"): 0.1,
    ("tvl1", "OpenCV"): 1.0,
    ("forward", "two_stream_2plus1d"): 0.4,
    ("forward", "repflow_2plus1d"): 0.2,
    ("forward", "flow_of_flow_2plus1d"): 0.22,
    ("forward", "rgb_2plus1d"): 0.16,
    ("flow inside", "repflow_2plus1d"): 0.004,
    ("flow inside", "flow_of_flow_2plus1d"): 0.01,
    ("training step", "two_stream_2plus1d"): 1.5,
    ("forward, best batch", "repflow_2plus1d"): 0.8,
}
ALONE = "decode", "tvl1"


def made_rows(changed=()):
    """Timings of batches of two clips."""
    rows = []
    for (stage, by), median in (SECONDS | dict(changed)).items():
        batch = 1 if stage in ALONE else 8 if "best" in stage else 2
        row = {"stage": stage, "by": by, "batch": batch, "median_s": median, "iqr_s": 0.0, "min_s": median}
        rows.append(row | {"clips_per_s": batch / median, "peak_mib": None})
    return rows


def test_stages_of_a_system_add_up():
    lines = {line["system"]: line for line in systems.table(made_rows(), "OpenCV")}
    assert list(lines) == ["two_stream_2plus1d", "repflow_2plus1d", "flow_of_flow_2plus1d", "rgb_2plus1d"]
    for line in lines.values():
        parts = [line[f"{name}_ms"] for name in ("decode", "tvl1", "flow_inside", "network")]
        assert sum(parts) == pytest.approx(line["total_ms"])
    assert lines["two_stream_2plus1d"]["total_ms"] == pytest.approx(10 + 1000 + 200)
    layered = lines["repflow_2plus1d"]
    assert (layered["flow_inside_ms"], layered["network_ms"]) == (pytest.approx(2), pytest.approx(98))
    assert (layered["paper"], layered["paper_ms"]) == ("(2+1)D + Rep-Flow", 622)


@pytest.mark.parametrize(("program", "flow"), [("OpenCV", 1000), ("repflow, cpu", 100)])
def test_ratios_are_those_of_the_totals(program, flow):
    found = {row["ratio"]: (row["paper"], row["here"]) for row in systems.ratios(made_rows(), program)}
    assert found == {
        "two-stream / rep-flow": pytest.approx((8623 / 622, (210 + flow) / 110)),
        "the same if TV-L1 took no time": pytest.approx((2 * 471 / 622, 210 / 110)),
        "share of TV-L1 in two-stream, %": pytest.approx((100 * 7681 / 8623, 100 * flow / (210 + flow))),
        "rep-flow / RGB": pytest.approx((622 / 471, 110 / 90)),
        "flow-of-flow / RGB": pytest.approx((654 / 471, 120 / 90)),
        "first flow layer, % of RGB": pytest.approx((100 * 151 / 471, 100 * 2 / 80)),
        "both flow layers, % of RGB": pytest.approx((100 * 183 / 471, 100 * 5 / 80)),
        "second flow layer, % of RGB": pytest.approx((100 * 32 / 471, 100 * 3 / 80)),
    }
    assert round(found["two-stream / rep-flow"][0], 1) == 13.9
    assert [round(found[f"{which} flow layer, % of RGB"][0]) for which in ("first", "second")] == [32, 7]


def test_without_the_systems_there_are_no_ratios():
    rows = [row for row in made_rows() if row["by"] != "rgb_2plus1d"]
    assert systems.ratios(rows, "OpenCV") == []


def test_a_file_of_timings_gives_the_same_tables(tmp_path):
    write_csv(tmp_path / "a.csv", [row | {"commit": "1234567", "gpu": None} for row in made_rows()])
    rows = read_timings(tmp_path / "a.csv", systems.NUMBERS)
    assert (rows[0]["commit"], rows[0]["gpu"], rows[0]["peak_mib"]) == ("1234567", "", None)
    assert systems.programs(rows) == ["OpenCV", "repflow, cpu"]
    for program in systems.programs(rows):
        assert systems.table(rows, program) == systems.table(made_rows(), program)
        assert systems.ratios(rows, program) == systems.ratios(made_rows(), program)


FACTS = {
    "frames": "9", "size": "48", "device": "cpu", "repeats": "5", "cpu": "A processor", "threads": "2", "gpu": "",
    "driver": "", "torch": "2.0", "cv2": "5.0", "numba": "", "commit": "0123456789ab", "date": "2030-01-02T03:04:05",
}  # fmt: skip


def test_the_readme_s_table_is_the_file_s():
    text = readme_tables.runtime([row | FACTS for row in made_rows()])
    cells = {line.split(" | ")[0].strip("|* "): line.strip("| ").split(" | ")[1:] for line in text.splitlines()}
    assert cells["ms per clip"] == [
        "decode", "TV-L1, OpenCV", "TV-L1, repflow, cpu", "flow inside the network", "rest of it", "total",
        "training step", "paper", "best batch",
    ]  # fmt: skip
    assert cells["(2+1)D Two-Stream"] == ["10", "1000", "100", "–", "200", "1210 / 310", "750", "8623", "–"]
    assert cells["(2+1)D + Rep-Flow"] == ["10", "–", "–", "2.0", "98", "110", "–", "622", "10 clips/s at 8"]
    assert cells["two-stream / rep-flow"] == ["13.9", "11", "2.82"]
    assert "**(2+1)D + Rep-Flow**" in text
    assert "**(2+1)D RGB**" not in text
    for fact in ("9 frames of 48 × 48", "batch 2", "A processor, 2 threads", "OpenCV 5.0", "012345678,", "2030-01-02"):
        assert fact in text
    assert "Numba" not in text


def test_the_readme_names_the_gpu_and_its_memory():
    gpu = FACTS | {"device": "cuda", "gpu": "A GPU", "driver": "550.1", "triton": "3.0"}
    rows = [row | gpu | {"peak_mib": 100.0} for row in made_rows()]
    text = readme_tables.runtime(rows)
    assert "A GPU, driver 550.1, beside A processor, 2 threads, PyTorch 2.0, OpenCV 5.0, Triton 3.0" in text
    assert "| 100 / 100 |" in text


def test_the_readme_shows_the_powers():
    facts = FACTS | {"channels": "8", "pairs": "4", "iterations": "6"}
    rows = [
        facts | {"axis": axis, "value": v, "engine": "cpu", "median_ms": 3 * v**power, "saved_mib": 5.0}
        for axis, power in (("pairs", 1.0), ("size", 2.0))
        for v in (2.0, 4.0, 8.0)
    ]
    assert "| cpu | 1.00, 0.00 | 2.00, 0.00 | – | – | – |" in readme_tables.powers(rows)


def test_results_have_files_for_the_readme():
    folder = results_folder()
    (runtime, *_) = (read_timings(file, systems.NUMBERS) for file in sorted(folder.glob("systems_*.csv")))
    assert {row["by"] for row in runtime if row["stage"] == "forward"} == set(systems.ROWS)
    for program in systems.programs(runtime):
        assert len(systems.ratios(runtime, program)) == 8
    grown = read_timings(folder / "scaling_cpu.csv", scaling.NUMBERS)
    assert {(row["axis"], row["engine"]) for row in scaling.exponents(grown)} == {
        (axis, engine) for axis in scaling.AXES for engine in ("reference", "cpu", "official")
    }


def test_the_readme_shows_a_gpu_s_files_too(tmp_path):
    """Stand-ins of such files: the CPU's, with other words."""
    shutil.copytree(results_folder(), tmp_path / "results")
    for name in ("solver", "tvl1", "systems", "scaling"):
        rows = read_csv(tmp_path / "results" / f"{name}_cpu.csv")
        on_gpu = {"device": "cuda", "gpu": "a GPU", "driver": "580.1", "commit": "0123456789-dirty"}
        for row in rows:
            named = {key: value.replace("cpu", "cuda") for key, value in row.items() if key in ("engine", "method")}
            row |= on_gpu | named
        write_csv(tmp_path / "results" / f"{name}_cuda.csv", rows)
    found = readme_tables.sections(tmp_path / "results")
    for name, count in (("timings", 2), ("runtime", 2)):
        assert found[name].count("on a GPU, driver 580.1, beside ") + found[name].count("On a GPU, driver") == count
        assert found[name].count("commit 012345678 with changes") == count
    assert "| the whole layer, forward |" in found["timings"]
    assert "| cuda |" in found["runtime"]
    assert "repflow, cuda |" in found["timings"]


@pytest.mark.parametrize("seeds", [2, 5, 6, 30])
def test_the_readme_s_interval_holds_for_any_number_of_seeds(seeds):
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).normal(50, 8, seeds)
    low, high = stats.t.interval(0.95, seeds - 1, values.mean(), stats.sem(values))
    assert readme_tables.interval(values) == f"{(low + high) / 2:.1f} ± {(high - low) / 2:.1f}"


def test_the_command_tells_ratios(tmp_path, capsys, monkeypatch):
    file = tmp_path / "systems.csv"
    monkeypatch.setattr(systems, "time_systems", lambda setting, repeats: made_rows())
    command = ["bench", "systems", "--profile", "tiny", "--device", "cpu", "--out", str(file)]
    assert main(command) == 0
    stdout, stderr = capsys.readouterr()
    lines = [re.split("  +", line) for line in stdout.splitlines()]
    assert ["two-stream / rep-flow", "13.86", "11"] in lines  # by OpenCV
    assert ["two-stream / rep-flow", "13.86", "2.818"] in lines
    assert stderr == ""
    assert {(row["frames"], row["size"], row["device"]) for row in read_csv(file)} == {("9", "64", "cpu")}
    alone = [row for row in made_rows() if row["by"] != "OpenCV"]
    monkeypatch.setattr(systems, "time_systems", lambda setting, repeats: alone)
    assert main(command) == 0
    assert "pip install -e '.[bench]'" in capsys.readouterr().err


def tiny(name, classes):
    return build_model(name, 3, backbone=f"tiny_{name.rpartition('_')[2]}")


def test_every_stage_is_timed(monkeypatch):
    monkeypatch.setattr(systems, "build_model", tiny)
    setting = systems.Setting(frames=9, size=64, batch=2)
    names = ("tvnet_2d", "repflow_2plus1d", "rgb_2plus1d")
    rows = systems.time_systems(setting, repeats=1, names=names)
    found = {(row["stage"], row["by"]) for row in rows}
    networks = {(stage, name) for stage in ("forward", "training step") for name in names}
    inside = {("flow inside", "tvnet_2d"), ("flow inside", "repflow_2plus1d")}
    assert found - {("tvl1", "OpenCV")} == {("decode", "repflow.video"), ("tvl1", "repflow, cpu")} | networks | inside
    for row in rows:
        assert row["median_s"] > 0
        assert row["batch"] == (1 if row["stage"] in ALONE else 2)
        assert row["clips_per_s"] == pytest.approx(row["batch"] / row["median_s"])
    monkeypatch.setattr(systems, "MOST", 2)
    assert systems.best_batch("repflow_2plus1d", setting, repeats=1)["batch"] in (1, 2)


def seconds_by(rates):
    """A clock by which a batch of 2**i clips takes as long as its rate, the i-th, says."""

    def time_in_turn(tasks, repeats):
        batches = {name: len(task()) for name, task in tasks.items()}
        return {name: np.array([batch / rates[batch.bit_length() - 1]]) for name, batch in batches.items()}

    return time_in_turn


@pytest.mark.parametrize(("rates", "best"), [((10, 15, 15.5, 40), 4), ((10, 9), 1), ((10, 20, 30, 31.6), 8)])
def test_the_best_batch_is_found_where_more_no_longer_help(rates, best, monkeypatch):
    monkeypatch.setattr(systems, "MOST", 2 ** (len(rates) - 1))
    monkeypatch.setattr(systems, "build_model", tiny)
    monkeypatch.setattr(systems, "time_in_turn", seconds_by(rates))
    row = systems.best_batch("rgb_2d", systems.Setting(frames=9, size=64))
    assert row["batch"] == best
    assert row["clips_per_s"] == pytest.approx(rates[best.bit_length() - 1])


@pytest.mark.parametrize("numbers", [{"frames": 8}, {"size": 16}, {"batch": 0}])
def test_settings_that_no_system_can_take(numbers):
    with pytest.raises(ValueError, match="at least 9 frames"):
        systems.Setting(**numbers)


def test_powers_are_those_of_the_points():
    rows = [
        {"axis": "size", "value": v, "engine": "cpu", "median_ms": 3.0 * v**2, "saved_mib": 5.0 * v}
        for v in (7, 14, 28)
    ]
    rows.append({"axis": "size", "value": 56, "engine": "cpu", "median_ms": None, "saved_mib": None})
    (row,) = scaling.exponents(rows)
    assert row == {"axis": "size", "engine": "cpu", "time": pytest.approx(2), "memory": pytest.approx(1)}


def test_memory_grows_as_it_should():
    rows = scaling.time_scaling(Problem(channels=2, pairs=2, size=8, iterations=4), repeats=1)
    assert {row["axis"] for row in rows} == set(scaling.AXES)
    powers = {(row["axis"], row["engine"]): row["memory"] for row in scaling.exponents(rows)}
    assert powers["iterations", "cpu"] == pytest.approx(0, abs=0.01)
    assert powers["iterations", "reference"] > 0.5
    assert powers["clips", "cpu"] == pytest.approx(1, abs=0.1)
