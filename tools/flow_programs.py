"""Programs for optical flow, and its files, asked the same: the tables of docs/flow.md, from results/flow_programs.csv.

python tools/flow_programs.py                          (in the checkout, after ci/setup; some minutes)
python tools/flow_programs.py --show QUESTION PROGRAM  (asks one thing, and prints the answer)
"""

import argparse
import multiprocessing
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import cv2
import numpy as np
import skimage.registration
import torch
from flow_files import READERS, SAVED, WRITERS, flow_to_store
from markers import write_marked
from tqdm import tqdm

from repflow.files import markdown_table, read_csv, write_csv
from repflow.tvl1 import tvl1

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "results" / "flow_programs.csv"
SIZE, MIDDLE = 256, slice(64, 192)  # the frames' sides, and what is judged: the rest may move out of the picture
SECONDS = 300  # for one question
TINY = 1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 127, 128
PACKAGES = {
    "repflow": "repflow",
    "OpenCV-DualTVL1": "opencv-contrib-python-headless",
    "OpenCV-DIS": "opencv-contrib-python-headless",
    "scikit-image": "scikit-image",
    "torchvision-RAFT": "torchvision",
}


@cache
def raft() -> torch.nn.Module:
    """RAFT's small form with random weights: what it accepts and how its answer is laid out, not what it finds."""
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    return raft_small(weights=None).eval()


def by_raft(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        frames = (torch.from_numpy(frame).expand(1, 3, -1, -1) for frame in (first, second))
        return raft()(*frames, num_flow_updates=2)[-1].numpy()


Program = Callable[[np.ndarray, np.ndarray], np.ndarray]  # two frames (H, W), as they come, to flow, as it comes
# Makes the program anew; what is called more than once keeps what it has in itself.
PROGRAMS: dict[str, Callable[[], Program]] = {
    "repflow": lambda: lambda first, second: tvl1(first, second).numpy(),
    "OpenCV-DualTVL1": lambda: with_object(cv2.optflow.DualTVL1OpticalFlow_create()),
    "OpenCV-DIS": lambda: with_object(cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)),
    "scikit-image": lambda: skimage.registration.optical_flow_tvl1,
    "torchvision-RAFT": lambda: by_raft,
}


def with_object(solver: Any) -> Program:
    return lambda first, second: solver.calc(first, second, None)


@cache
def pair(kind: str, speed: int, side: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Two frames (side, side), whole numbers in 0..255, cut from one cloudy picture: they move "right" or "down"."""
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(512))
    noise = np.fft.rfft2(np.random.default_rng(0).normal(size=(512, 512)))
    clouds = np.fft.irfft2(noise / (frequency + 1 / 128) ** 1.5)
    clouds = np.rint(255 * (clouds - clouds.min()) / np.ptp(clouds))
    down, right = (0, speed) if kind == "right" else (speed, 0)
    return clouds[64 : 64 + side, 64 : 64 + side], clouds[64 - down :, 64 - right :][:side, :side]


# How frames are given: what stands in the CSV, and the conversion from 0..255. DIS takes bytes alone.
KINDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "uint8": np.uint8,
    "uint16": np.uint16,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "float32, 0 to 255": np.float32,
    "float32, 0 to 1": lambda frame: np.float32(frame / 255),
    "float64, 0 to 1": lambda frame: frame / 255,
    "float32, -1 to 1": lambda frame: np.float32(frame / 127.5 - 1),
}
OWN = {"scikit-image": "float32, 0 to 1", "torchvision-RAFT": "float32, -1 to 1"}  # the others: uint8


def ask(program: Program, name: str, kind: str = "right", speed: int = 2, given: str = "", side: int = SIZE) -> Any:
    """What comes for a pair."""
    return program(*(KINDS[given or OWN.get(name, "uint8")](frame) for frame in pair(kind, speed, side)))


def components(flow: np.ndarray) -> np.ndarray:
    """Flow of any layout as (2, H, W), in its own order of components."""
    flow = flow.reshape(flow.shape[-3:])  # a batch of one
    return np.moveaxis(flow, 2, 0) if flow.shape[2] == 2 else flow


def found(name: str, flow: np.ndarray) -> float:
    """The mean motion to the right in the middle; scikit-image puts it second."""
    return float(components(flow)[1 if name == "scikit-image" else 0][MIDDLE, MIDDLE].mean())


def layout(name: str, program: Program) -> str:
    """Shape, type, order and sign."""
    flow = ask(program, name)
    shape = str(flow.shape).replace(str(SIZE), "H", 1).replace(str(SIZE), "W", 1)
    if name == "torchvision-RAFT":
        return f"{shape} {flow.dtype}"
    by_kind = {kind: components(ask(program, name, kind))[:, MIDDLE, MIDDLE].mean((1, 2)) for kind in ("right", "down")}
    place = int(np.abs(by_kind["right"]).argmax())
    order = "u, v" if place == 0 else "v, u"
    signs = (f"{'right' if kind == 'right' else 'down'} {at:+.1f}" for kind, at in
             (("right", by_kind["right"][place]), ("down", by_kind["down"][1 - place])))  # fmt: skip
    return f"{shape} {flow.dtype}: {order}; of 2 px {', '.join(signs)}"


def after_a_small_pair(name: str, program: Program) -> str:
    """12 px, asked of a new object and of one that has seen a small pair."""
    before = found(name, ask(PROGRAMS[name](), name, speed=12))
    ask(program, name, side=32)
    return f"{before:.2f}, then {found(name, ask(program, name, speed=12)):.2f}"


def with_nan(name: str, program: Program) -> str:
    """One pixel of the first frame is NaN."""
    given = OWN.get(name, "float32, 0 to 1")
    first, second = (KINDS[given](frame) for frame in pair("right", 2))
    first[SIZE // 2, SIZE // 2] = np.nan
    flow = components(program(first, second))
    lost = np.isnan(flow).any(0).mean()
    return f"{100 * lost:.0f} % of the pixels NaN" if lost else f"no NaN; {found(name, flow):.2f} px for 2"


def least_side(name: str, program: Program) -> str:
    """The least square that is taken, and what is said to those below."""
    said = ""
    for side in TINY:
        try:
            flow = PROGRAMS[name]()(*(KINDS[OWN.get(name, "uint8")](np.zeros((side, side))) for _ in range(2)))
        except Exception as error:  # whatever it raises
            said = f"; below: {type(error).__name__}"
        else:
            return f"{side} px{said}{'' if np.isfinite(flow).all() else '; gives NaN'}"
    return f"none of {TINY}{said}"


def over_threads(name: str, program: Program) -> str:
    """The greatest difference between the flow of one thread and that of four."""
    flows = []
    for threads in (1, 4, 4):
        cv2.setNumThreads(threads)
        torch.set_num_threads(threads)
        flows.append(ask(PROGRAMS[name](), name, speed=5))
    most = max(float(np.abs(flow - flows[0]).max()) for flow in flows)
    return "the same bits" if most == 0 else f"up to {most:.2g} px"


def moved(speed: int, given: str = "") -> Callable[[str, Program], str]:
    """What is found of a motion to the right."""
    return lambda name, program: f"{found(name, ask(program, name, speed=speed, given=given)):.2f}"


QUESTIONS: dict[str, Callable[[str, Program], str]] = {
    "layout": layout,
    **{f"2 px, {given}": moved(2, given) for given in KINDS},
    **{f"{speed} px": moved(speed) for speed in (1, 5, 10, 15, 20)},
    "identical frames": lambda name, program: f"at most {np.abs(ask(program, name, speed=0)).max():.2g} px",
    "12 px after a small pair": after_a_small_pair,
    "NaN": with_nan,
    "least side": least_side,
    "1 and 4 threads": over_threads,
}
# What random weights say nothing about.
UNKNOWN = [question for question in QUESTIONS if "px" in question or question == "identical frames"]


def answers(name: str, questions: Sequence[str]) -> dict[str, str]:
    """A program's answers, from a process of its own: one that it ends or blocks is an answer, too."""
    waiting = [question for question in questions if name != "torchvision-RAFT" or question not in UNKNOWN]
    result = dict.fromkeys(questions, "")
    context = multiprocessing.get_context("fork")  # nothing has been computed here, so no thread is lost
    while waiting:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_send_answers, args=(sender, name, waiting))
        process.start()
        sender.close()
        for question in list(waiting):
            waiting.remove(question)
            try:
                result[question] = receiver.recv() if receiver.poll(SECONDS) else "gives no answer"
            except EOFError:
                result[question] = "ends its process"
            if result[question] in ("gives no answer", "ends its process"):
                break
        process.kill()
        process.join()
    return result


def _send_answers(sender: Any, name: str, questions: Sequence[str]) -> None:
    for question in questions:
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        try:
            sender.send(QUESTIONS[question](name, PROGRAMS[name]()))
        except Exception as error:  # whatever a program raises
            sender.send(f"raises {type(error).__name__}")


def stored() -> Iterator[tuple[str, str, str]]:
    """(what was saved and by whom, who read it, the error) of flow through files."""
    flow = flow_to_store()
    for (form, writer), write in WRITERS.items():
        with TemporaryDirectory() as folder:
            path = Path(folder, f"flow{SAVED[form]}")
            write(path, flow)
            for (of, reader), read in READERS.items():
                if of == form:
                    try:
                        error = np.abs(read(path) - flow).max()
                        said = f"{error:.3g} px"
                    except Exception as problem:  # whatever a program raises
                        said = f"raises {type(problem).__name__}"
                    yield f"{form} by {writer}", reader, said


def measured() -> Iterator[dict[str, str]]:
    """The rows of results/flow_programs.csv: programs first (they fork), then files."""
    facts = {"python": platform.python_version(), "platform": platform.platform(), "date": f"{datetime.now(UTC):%F}"}
    by_program = {name: answers(name, list(QUESTIONS)) for name in tqdm(PROGRAMS, unit="program")}
    for question in QUESTIONS:
        for name, package in PACKAGES.items():
            row = {"part": "program", "question": question, "program": name, "answer": by_program[name][question]}
            yield row | {"version": version(package)} | facts
    versions = {
        "OpenCV": cv2.__version__,
        "PyAV": av.__version__,
        "repflow": version("repflow"),
        "NumPy": np.__version__,
    }
    for question, reader, said in stored():
        of = versions.get(reader.partition("-")[0]) or version(reader)
        yield {"part": "file", "question": question, "program": reader, "answer": said, "version": of} | facts


def document(rows: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The parts of docs/flow.md that come from the results."""
    parts = {}
    for part in ("program", "file"):
        chosen = [row for row in rows if row["part"] == part]
        names = list(dict.fromkeys(row["program"] for row in chosen))
        cells = {(row["question"], row["program"]): row["answer"] for row in chosen}
        lines = [
            [question, *(cells.get((question, name)) or "–" for name in names)]
            for question in dict.fromkeys(row["question"] for row in chosen)
        ]
        head = ["asked" if part == "program" else "written", *(f"`{name}`" for name in names)]
        parts[f"{part}s"] = markdown_table(head, lines) + "\n"
    versions = dict.fromkeys(f"{row['program']} {row['version']}" for row in rows if row["program"] != "repflow")
    return parts | {"versions": f"Made on {rows[0]['date']} with Python {rows[0]['python']}, {', '.join(versions)}.\n"}


def main() -> None:
    """Ask everything and write results and tables, or one program one question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", nargs=2, metavar=("QUESTION", "PROGRAM"))
    asked = parser.parse_args().show
    if not asked:
        write_csv(RESULT, list(measured()))
        write_marked(ROOT / "docs" / "flow.md", document(read_csv(RESULT)))
    elif asked[0] in QUESTIONS and asked[1] in PROGRAMS:
        sys.stdout.write(f"{answers(asked[1], asked[:1])[asked[0]]}\n")
    else:
        parser.error(f"QUESTION is one of {' | '.join(QUESTIONS)}; PROGRAM one of {', '.join(PROGRAMS)}")


if __name__ == "__main__":
    main()
