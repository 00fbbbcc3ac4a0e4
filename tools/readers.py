"""Which reader gives the right frames of which video: the table of docs/readers.md, from results/readers.csv.

python tools/readers.py                    (in the checkout, after ci/setup; some minutes; needs the network, and
                                            FFmpeg's libraries for torchcodec: asks every reader)
python tools/readers.py --show READER FILE (asks one reader about one file, and prints its answers)
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from markers import write_marked
from numbered import COLOURS, UPRIGHT
from numbered_files import FILES, make, truth
from readers_worker import sampled
from tqdm import tqdm

from repflow.files import markdown_table, read_csv, text_table, write_csv

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "results" / "readers.csv"
SECONDS = 120  # for one question
COLOUR = 3  # levels of 256 that a colour may be away
ASKED = "count", "in order", "last", "first", "random"
QUESTIONS = *ASKED, "colour", "as shown"
TURNS = "sides exchanged", "mirrored left to right", "mirrored top to bottom"


class Reader(NamedTuple):
    """A class of readers_worker.py and the packages it needs; none: it runs in the project's own environment."""

    worker: str
    packages: tuple[str, ...] = ()


TORCHCODEC = "torchcodec==0.17.0", "torch==2.13.0", "numpy"
IMAGEIO = "imageio[pyav,ffmpeg]==2.38.1", "av==18.1.0", "imageio-ffmpeg==0.8.1"
READERS = {
    "repflow": Reader("Repflow"),
    "PyAV": Reader("PyAV"),
    "torchcodec": Reader("Torchcodec", TORCHCODEC),
    "torchcodec-approximate": Reader("Approximate", TORCHCODEC),
    "torchvision": Reader("Torchvision", ("torchvision==0.28.0", *TORCHCODEC)),
    "OpenCV-4.12": Reader("OpenCV", ("opencv-python-headless==4.12.0.88",)),
    "OpenCV-4.13": Reader("OpenCV", ("opencv-python-headless==4.13.0.92",)),
    "OpenCV-5.0": Reader("OpenCV", ("opencv-contrib-python-headless==5.0.0.93",)),
    "decord": Reader("Decord", ("decord==0.6.0", "numpy")),
    "decord2": Reader("Decord", ("decord2==3.4.0",)),
    "imageio-pyav": Reader("ImageioPyAV", IMAGEIO),
    "imageio-ffmpeg": Reader("ImageioFFmpeg", IMAGEIO),
}


@contextmanager
def python_with(packages: Sequence[str]) -> Iterator[str]:
    """The interpreter of an environment with these packages, which is gone afterwards."""
    if not packages:
        yield sys.executable
        return
    uv = str(Path(sys.executable).with_name("uv"))
    with TemporaryDirectory() as folder:
        python = f"{folder}/bin/python"
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *packages], check=True)
        yield python


def answers(python: str, worker: str, files: Sequence[Path]) -> dict[str, dict[str, dict[str, Any]]]:
    """By file and question what the reader answers; where it ends its process it is started again at the next file."""
    result: dict[str, dict[str, dict[str, Any]]] = {}
    waiting = list(files)
    while waiting:
        videos = [f"{len(truth(file.name)[0])}:{file}" for file in waiting]
        command = [python, str(ROOT / "tools" / "readers_worker.py"), worker, str(SECONDS), *videos]
        environ = os.environ | {"PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
        for line in map(json.loads, ended.stdout.splitlines()):
            result.setdefault(line["file"], {})[line["question"]] = line
        if ended.returncode > 0:
            raise RuntimeError(f"{worker}: the worker failed; it says\n{ended.stderr}")
        unfinished = [file for file in waiting if len(result.get(file.name, ())) < len(ASKED)]
        for file in unfinished[:1]:
            result.setdefault(file.name, {})
        waiting = unfinished[1:]
    return result


def verdicts(file: str, reply: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Of each question: "right", "wrong: ...", "raises: ...", "ends its process", or nothing where no frame tells."""
    numbers, size = truth(file)
    wanted = {
        "in order": numbers,
        "last": numbers[-1:],
        "first": numbers[:1],
        "random": [numbers[place] for place in sampled(len(numbers))],
    }
    result = dict.fromkeys(QUESTIONS, "")
    for question in ASKED:
        if question not in reply:
            result[question] = "ends its process"
            break
        if "raises" in reply[question]:
            result[question] = f"raises: {reply[question]['raises'][:120]}"
        elif question == "count":
            count = reply[question]["answer"]
            result[question] = "right" if count == len(numbers) else f"wrong: {count} for {len(numbers)}"
        else:
            result[question] = _compared([frame["number"] for frame in reply[question]["answer"]], wanted[question])
    frames = [frame for frame in reply.get("in order", {}).get("answer", ()) if frame["number"] is not None]
    if frames:
        away = np.abs(np.array(frames[0]["colours"]) - COLOURS)
        worst = away.max(1).argmax()
        pair = (" ".join(f"{level:.0f}" for level in of[worst]) for of in (COLOURS, frames[0]["colours"]))
        result["colour"] = "right" if away.max() <= COLOUR else f"wrong: {' is '.join(pair)}"
        turns = [turn for turn, needed in zip(TURNS, frames[0]["how"], strict=True) if needed]
        if tuple(frames[0]["how"]) == UPRIGHT and frames[0]["size"] != size:
            turns = ["{1} × {0} px for {3} × {2}".format(*frames[0]["size"], *size)]
        result["as shown"] = f"wrong: {', '.join(turns)}" if turns else "right"
    return result


def _compared(got: Sequence[int | None], wanted: Sequence[int]) -> str:
    """What is wrong: the number of frames, and the first that is another one."""
    if list(got) == list(wanted):
        return "right"
    number = [f"{len(got)} frames for {len(wanted)}"] if len(got) != len(wanted) else []
    other = [f"{'noise' if a is None else a} for {b}" for a, b in zip(got, wanted, strict=False) if a != b][:1]
    return f"wrong: {', '.join(number + other)}"


def measured() -> Iterator[dict[str, str]]:
    """The rows of results/readers.csv."""
    facts = {"python": platform.python_version(), "platform": platform.platform(), "date": f"{datetime.now(UTC):%F}"}
    with TemporaryDirectory() as folder:
        files = [make(name, Path(folder)) for name in FILES]
        for name, reader in tqdm(READERS.items(), unit="reader"):
            own = {"repflow": "repflow", "PyAV": "av"}
            of = reader.packages[0].rpartition("==")[2] if reader.packages else version(own[name])
            with python_with(reader.packages) as python:
                replies = answers(python, reader.worker, files)
            for file in FILES:
                yield {"file": file, "reader": name, "version": of, **verdicts(file, replies[file]), **facts}


def cell(row: Mapping[str, str]) -> str:
    """What the table says of a reader and a file."""
    kinds: dict[str, list[str]] = {}
    for question in QUESTIONS:
        if row[question] not in ("right", ""):
            kinds.setdefault(row[question].partition(":")[0], []).append(question)
    if not kinds:
        return "right"
    if any(row[question] == "right" for question in QUESTIONS) or len(kinds) > 1:
        return "; ".join(kind if kind.startswith("ends") else f"{kind}: {', '.join(of)}" for kind, of in kinds.items())
    return next(iter(kinds))


def document(rows: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The parts of docs/readers.md that come from the results."""
    names = {row["reader"]: row["version"] for row in rows}
    cells = {(row["file"], row["reader"]): cell(row) for row in rows}
    lines = [[f"`{file}`: {FILES[file].what}", *(cells[file, name] for name in names)] for file in FILES]
    right = {name: sum(cells[file, name] == "right" for file in FILES) for name in names}
    lines.append(["**right of " + f"{len(FILES)}**", *(f"**{count}**" for count in right.values())])
    versions = ", ".join(f"{name} {of}" for name, of in names.items() if name != "repflow")
    note = f"Made on {rows[0]['date']} with Python {rows[0]['python']} and {versions}.\n"
    return {"versions": note, "table": markdown_table(["file", *(f"`{name}`" for name in names)], lines) + "\n"}


def show(name: str, file: str) -> str:
    """What one reader says about one file, beside the truth."""
    with TemporaryDirectory() as folder, python_with(READERS[name].packages) as python:
        reply = answers(python, READERS[name].worker, [make(file, Path(folder))])[file]
    return text_table([{"question": question, "verdict": of} for question, of in verdicts(file, reply).items()])


def main() -> None:
    """Ask all readers and write results and table, or one reader about one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", nargs=2, metavar=("READER", "FILE"))
    asked = parser.parse_args().show
    if not asked:
        write_csv(RESULT, list(measured()))
        write_marked(ROOT / "docs" / "readers.md", document(read_csv(RESULT)))
    elif asked[0] in READERS and asked[1] in FILES:
        sys.stdout.write(show(*asked) + "\n")
    else:
        parser.error(f"READER is one of {', '.join(READERS)}; FILE one of {', '.join(FILES)}")


if __name__ == "__main__":
    main()
