"""The command `repflow`: one function for each subcommand, which imports what is heavy itself."""

import argparse
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from repflow import __version__
from repflow.cli import compare, doctor, evaluate, sweep, train
from repflow.cli.datasets import add_quarantine
from repflow.experiments import UsageError
from repflow.experiments.parameters import PROFILES

if TYPE_CHECKING:
    from repflow.files import Row

Adder = Callable[[argparse.ArgumentParser], None]
Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's) and return its exit code.

    0: done; 1: something failed; 2: wrong usage, nothing was started; 130: stopped by ctrl-C or a signal.
    """
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("repflow").setLevel(logging.INFO)
    with suppress(AttributeError):  # a stand-in for the output has none
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be in any encoding
    with suppress(ValueError):  # not in a thread, where no handler can be set
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ctrl-C: what is unfinished is cleaned up
    try:
        code = arguments.command(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who read our output has gone; what is left of it goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except (UsageError, OSError, ValueError) as error:  # ours say what was expected, what came and what to do
        logging.getLogger(__name__).debug("", exc_info=True)
        sys.stderr.write(f"repflow: {error}\n")
        return 2 if isinstance(error, UsageError) else 1


class _Parser(argparse.ArgumentParser):
    """Its subcommands, which are parsers of this class, tell of unknown arguments with their own usage."""

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="repflow", description="Understand, run and measure representation flow.")
    parser.add_argument("--version", action="version", version=f"repflow {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run(commands.add_parser("run", help="execute notebooks", description=_run.__doc__, allow_abbrev=False))
    _add_flow(commands.add_parser("flow", help="TV-L1 flow of a video", description=_flow.__doc__, allow_abbrev=False))
    _add_bench(commands.add_parser("bench", help="measure time and memory", allow_abbrev=False))
    for name, add, run, text in (
        ("train", train.add, train.run, "train a system on a data set; goes on where it was stopped"),
        ("evaluate", evaluate.add, evaluate.run, "accuracy on test videos"),
        ("sweep", sweep.add, sweep.run, "a grid of experiments; goes on where it was stopped"),
        ("compare", compare.add, compare.run, "the paper's accuracies beside ours"),
        ("convert", evaluate.add_convert, evaluate.run_convert, "checkpoints of the 2019 release as safetensors"),
        ("doctor", doctor.add, doctor.run, "what works here, and what mends the rest"),
    ):
        add(commands.add_parser(name, help=text, description=run.__doc__, allow_abbrev=False))
    _add_data(commands.add_parser("data", help="prepare and check data sets", allow_abbrev=False))
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_run)
    add = parser.add_argument
    add("notebooks", nargs="*", metavar="NOTEBOOK", help="number, name or .ipynb file (default: all, in order)")
    add("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="a parameter's value, for each notebook that has it; may be repeated")  # fmt: skip
    add("--profile", choices=PROFILES, default="tiny", help="the size of the experiment (default: tiny)")
    add("--out", type=Path, default=Path("runs"), help="where the folder with the results goes (default: runs)")


def _run(arguments: argparse.Namespace) -> int:
    """Execute notebooks and write a folder with their pages, figures and metrics; its index page is the last line."""
    from repflow import experiments

    jobs = experiments.plan(arguments.notebooks, arguments.parameters, arguments.profile)
    index, good = experiments.run(jobs, arguments.out, arguments.profile)
    sys.stdout.write(f"{index}\n")
    return 0 if good else 1


def _add_flow(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_flow)
    add = parser.add_argument
    add("video", type=Path, metavar="VIDEO", help="any video file")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="a .gif or .mp4 to look at, an .npz with the numbers, or a .flo with those of the first two frames",
    )
    add("--start", type=int, default=0, metavar="N", help="first frame (default: 0)")
    add("--frames", type=int, metavar="N", help="at most so many frames (default: all)")
    add("--stride", type=int, default=1, metavar="N", help="take every N-th frame (default: 1)")
    add("--width", type=int, metavar="PX", help="reduce wider frames first (default: 320 for pictures)")
    add("--checkpoint", type=Path, metavar="FILE",
        help="instead of TV-L1, the flow that this trained model computes inside, as .gif or .mp4")  # fmt: skip
    add("--channels", type=int, nargs="+", metavar="N", help="which of its channels (default: 0 1 2)")
    add("--layer", type=int, metavar="N", help="which of its flows, 0 is the first (default: the last)")


def _flow(arguments: argparse.Namespace) -> int:
    """Compute TV-L1 flow between successive frames, and write it as a GIF or MP4 (frames beside flow colours) or as
    arrays: `flow` (T-1, 2, H, W) in pixels per frame taken, u to the right and v down, and `fps`."""
    from repflow.data.flow import write_flow_flo, write_flow_npz
    from repflow.figures import write_flow_gif, write_flow_mp4

    options = _numbers(arguments, start=0, frames=1, stride=1, width=1)
    if arguments.checkpoint:
        return _learned_flow(arguments)
    for name in ("channels", "layer"):
        if getattr(arguments, name) is not None:
            raise UsageError(f"--{name}: is of the flow inside a trained model; name it: --checkpoint FILE")
    writers = {".gif": write_flow_gif, ".mp4": write_flow_mp4, ".npz": write_flow_npz, ".flo": write_flow_flo}
    write = writers.get(arguments.out.suffix.lower())
    if write is None:
        raise UsageError(f"--out {arguments.out}: expected a name that ends in .gif, .mp4, .npz or .flo")
    _check_writable(arguments.out)
    write(arguments.video, arguments.out, **options)
    sys.stdout.write(f"{arguments.out}\n")
    return 0


def _learned_flow(arguments: argparse.Namespace) -> int:
    import numpy as np
    import torch

    from repflow.data.flow import flow_rate, narrowed
    from repflow.figures import write_channels
    from repflow.models.learned import learned_flows
    from repflow.training import open_checkpoint
    from repflow.video import read_clip

    if arguments.out.suffix.lower() not in (".gif", ".mp4"):
        raise UsageError(f"--out {arguments.out}: expected a name that ends in .gif or .mp4")
    _check_writable(arguments.out)
    model, settings, *_ = open_checkpoint(arguments.checkpoint)
    frames, width = arguments.frames or settings["frames"], arguments.width or 320
    layer, channels = -1 if arguments.layer is None else arguments.layer, arguments.channels or [0, 1, 2]
    pixels = read_clip(arguments.video, arguments.start, frames, arguments.stride)
    pixels = np.stack([narrowed(frame, width) for frame in pixels])
    clip = torch.from_numpy(pixels).permute(3, 0, 1, 2) * (2 / 255) - 1
    flows = learned_flows(model, -clip if settings["inverted"] else clip)
    if layer not in range(-len(flows), len(flows)):
        raise UsageError(f"--layer {layer}: the model has {len(flows)} flows, 0 to {len(flows) - 1}")
    flow = flows[layer]
    if wrong := [channel for channel in channels if channel not in range(flow.shape[1])]:
        raise UsageError(f"--channels {wrong[0]}: this flow has channels 0 to {flow.shape[1] - 1}")
    write_channels(arguments.out, pixels, flow, channels, flow_rate(arguments.video, arguments.stride))
    sys.stdout.write(f"{arguments.out}\n")
    return 0


def _add_bench(parser: argparse.ArgumentParser) -> None:
    for command in _subcommands(
        parser,
        ("solver", _add_bench_solver, _bench_solver, "the solver's engines and the layers"),
        ("tvl1", _add_bench_tvl1, _bench_tvl1, "optical flow of images, by several programs"),
        ("video", _add_bench_video, _bench_video, "random clips of videos, by several decoders"),
        (
            "scaling",
            _add_bench_solver,
            _bench_scaling,
            "the layers against frames, pixels, channels, iterations, batch",
        ),
        ("systems", _add_bench_systems, _bench_systems, "a clip in every system of the table, stage by stage"),
    ):
        command.add_argument("--out", type=Path, metavar="FILE", help="write a CSV file, too, which names the machine")


def _subcommands(
    parser: argparse.ArgumentParser, *entries: tuple[str, Adder | None, Command, str]
) -> Iterator[argparse.ArgumentParser]:
    """Add commands below a command: name, what adds its options, what runs it, and its line of help."""
    commands = parser.add_subparsers(metavar="WHAT", required=True)
    for name, add, run, text in entries:
        command = commands.add_parser(name, help=text, description=run.__doc__, allow_abbrev=False)
        command.set_defaults(command=run)
        if add:
            add(command)
        yield command


def _add_bench_solver(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--channels", type=int, default=32, metavar="N", help="of the feature maps (default: 32)")
    add("--pairs", type=int, default=15, metavar="N", help="of maps; a clip has one more (default: 15)")
    add("--size", type=int, default=28, metavar="PX", help="height and width of the maps (default: 28)")
    add("--iterations", type=int, default=20, metavar="N", help="of the solver (default: 20)")
    add("--repeats", type=int, default=7, metavar="N", help="rounds (default: 7)")
    _add_device(parser)


def _bench_solver(arguments: argparse.Namespace) -> int:
    """Time the flow of feature maps and the whole layer, forward and backward, by every engine that can run and by the
    official layer of June 2019, in random order; and measure their memory."""
    from repflow.benchmark import solver
    from repflow.records import circumstances

    options = _numbers(arguments, channels=1, pairs=1, size=2, iterations=1, repeats=1)
    repeats = options.pop("repeats")
    problem = solver.Problem(**options, device=_device(arguments.device))
    _check_writable(arguments.out)
    rows = solver.time_solver(problem, repeats)
    facts = asdict(problem) | {"repeats": repeats} | circumstances("numba", "triton")
    _hand_out(rows, facts, arguments.out)
    return 0


def _bench_scaling(arguments: argparse.Namespace) -> int:
    """Time the layer, forward and backward, by every engine and as released in June 2019, while its frames, pixels,
    channels, iterations and batch grow, each for itself; and fit the powers that time and memory grow with."""
    from repflow.benchmark import scaling, solver
    from repflow.files import text_table
    from repflow.records import circumstances

    options = _numbers(arguments, channels=2, pairs=2, size=8, iterations=2, repeats=1)
    repeats = options.pop("repeats")
    problem = solver.Problem(**options, device=_device(arguments.device))
    _check_writable(arguments.out)
    rows = scaling.time_scaling(problem, repeats)
    _hand_out(rows, asdict(problem) | {"repeats": repeats} | circumstances("numba", "triton"), arguments.out)
    sys.stdout.write(f"\npowers\n\n{text_table(scaling.exponents(rows))}\n")
    return 0


def _add_bench_tvl1(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--pairs", type=Path, metavar="DIR",
        help="subfolders with frame10.png, frame11.png, flow10.flo (default: a made pair, 480x640)")  # fmt: skip
    add("--repeats", type=int, default=5, metavar="N", help="rounds for each pair (default: 5)")
    _add_device(parser)


def _bench_tvl1(arguments: argparse.Namespace) -> int:
    """Time optical flow by TV-L1 (this package's engines, OpenCV, scikit-image) and DIS (OpenCV), each with its own
    defaults, in random order; and measure their error against the true flow."""
    from repflow.benchmark import flow
    from repflow.records import circumstances

    repeats = _numbers(arguments, repeats=1)["repeats"]
    device = _device(arguments.device)
    _check_writable(arguments.out)
    pairs = flow.read_pairs(arguments.pairs) if arguments.pairs else [flow.made_pair()]
    if not pairs:
        raise UsageError(f"--pairs {arguments.pairs}: expected subfolders with frame10.png, frame11.png, flow10.flo")
    rows = flow.time_tvl1(pairs, device, repeats)
    facts = {"device": device, "repeats": repeats} | circumstances("numba", "triton", "cv2", "skimage")
    _hand_out(rows, facts, arguments.out)
    _tell_of_extra(any(row["note"] for row in rows))
    return 0


def _add_bench_video(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("videos", nargs="*", type=Path, metavar="VIDEO", help="files of 32 frames or more (default: two made ones)")
    add("--clips", type=int, default=24, metavar="N", help="in a round (default: 24)")
    add("--repeats", type=int, default=5, metavar="N", help="rounds (default: 5)")


def _bench_video(arguments: argparse.Namespace) -> int:
    """Time reading random clips of 32 frames, resized to 112x112, with one and with two workers: by this package, by
    plain PyAV, torchcodec and OpenCV, in random order."""
    from tempfile import TemporaryDirectory

    from repflow.benchmark import video
    from repflow.records import circumstances

    numbers = _numbers(arguments, clips=1, repeats=1)
    _check_writable(arguments.out)
    with TemporaryDirectory() as folder:
        videos = {path.name: path for path in arguments.videos} or video.make_videos(Path(folder))
        rows = video.time_readers(videos, **numbers)
    _hand_out(rows, numbers | circumstances("av", "torchcodec", "cv2"), arguments.out)
    _tell_of_extra(any(row["note"] for row in rows))
    return 0


def _add_bench_systems(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--profile", choices=PROFILES, default="paper", help="tiny: 9 frames of 48x48; small: 16 of 112x112; paper: 32 "
        "of 224x224 (default)")  # fmt: skip
    add("--frames", type=int, metavar="N", help="of a clip, instead of the profile's")
    add("--size", type=int, metavar="PX", help="its height and width, instead of the profile's")
    add("--batch", type=int, default=1, metavar="N", help="clips at a time (default: 1)")
    add("--best", action="store_true", help="also find each network's batch with most clips a second")
    add("--against", type=Path, metavar="FILE", help="an earlier run's file: show what has changed")
    add("--repeats", type=int, default=5, metavar="N", help="rounds (default: 5)")
    _add_device(parser)


def _bench_systems(arguments: argparse.Namespace) -> int:
    """Time a clip in every system of the authors' table: decoding, TV-L1 by several programs, network forward and
    training step, in random order; then the paper's milliseconds and ratios beside these."""
    from repflow.benchmark import systems
    from repflow.files import text_table
    from repflow.records import circumstances, read_timings

    asked = {name: value for name, value in _numbers(arguments, frames=9, size=32).items() if value}
    numbers = _numbers(arguments, batch=1, repeats=1)
    device = _device(arguments.device)
    setting = systems.Setting(**{**systems.PROFILES[arguments.profile], **asked}, batch=numbers["batch"], device=device)
    _check_writable(arguments.out)
    before = read_timings(arguments.against, systems.NUMBERS) if arguments.against else []
    for name in ("frames", "size", "device"):
        wanted = str(getattr(setting, name))
        if before and before[0][name] != wanted:
            raise UsageError(f"--against {arguments.against}: expected {name} {wanted}, got {before[0][name]}")
    rows = systems.time_systems(setting, numbers["repeats"])
    if arguments.best:
        rows += [row for name in systems.TABLE if (row := systems.best_batch(name, setting))]
    facts = asdict(setting) | numbers | circumstances("av", "cv2", "numba", "triton")
    facts.pop("batch")  # a column of its own
    _hand_out(rows, facts, arguments.out)
    for program in systems.programs(rows):
        lines, found = systems.table(rows, program), systems.ratios(rows, program)
        sys.stdout.write(f"\nTV-L1 by {program}\n\n{text_table(lines)}\n\n{text_table(found)}\n")
    if before:
        program = next(name for name in systems.programs(rows) if name in systems.programs(before))
        found = systems.compare(before, rows, program)
        sys.stdout.write(f"\nover (2+1)D + Rep-Flow, in {arguments.against} and now\n\n{text_table(found)}\n")
    _tell_of_extra("OpenCV" not in systems.programs(rows))
    return 0


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU, else cpu")


def _tell_of_extra(missing: bool) -> None:
    if missing:
        sys.stderr.write("repflow: the extra `bench` brings what is not installed: pip install -e '.[bench]'\n")


def _add_data(parser: argparse.ArgumentParser) -> None:
    for command in _subcommands(
        parser,
        ("make", _add_data_make, _data_make, "generated videos of twelve motions"),
        ("unpack", None, _data_unpack, "HMDB51's official archives"),
        ("check", _add_data_check, _data_check, "decode every video, list the bad ones"),
        ("extract-flow", _add_data_extract, _data_extract, "TV-L1 flow of every video"),
    ):
        command.add_argument("root", type=Path, metavar="ROOT", help="the data set's folder")


def _add_data_make(parser: argparse.ArgumentParser) -> None:
    for name, default, what in (
        ("train", 60, "training clips a class"), ("test", 20, "test clips a class"), ("size", 48, "pixels a side"),
        ("frames", 9, "frames a clip"), ("seed", 0, "of everything random"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{what} (default: {default})")
    parser.add_argument("--moving", choices=("frame", "object"), default="frame", help="what moves (default: frame)")


def _data_make(arguments: argparse.Namespace) -> int:
    """Make SyntheticMotion: small videos in HMDB51's layout whose class is told by motion alone."""
    from repflow.data import SyntheticMotion

    numbers = _numbers(arguments, train=1, test=0, size=8, frames=3, seed=0)
    SyntheticMotion.make(arguments.root, **numbers, moving=arguments.moving)
    sys.stdout.write(f"{arguments.root}\n")
    return 0


def _data_unpack(arguments: argparse.Namespace) -> int:
    """Unpack HMDB51's .rar files that lie in ROOT into its class folders; nothing that is there is replaced."""
    from repflow.data.unpack import unpack_hmdb51

    sys.stdout.writelines(f"{name}\n" for name in unpack_hmdb51(arguments.root))
    return 0


def _add_data_check(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes (default: one a core)")
    add("--seconds", type=int, default=30, metavar="N", help="longest time for a video (default: 30)")
    add("--shortest", type=int, default=2, metavar="N", help="fewest frames of a good video (default: 2)")
    add("--out", type=Path, metavar="DIR", help="where check.csv and quarantine.txt go (default: ROOT)")


def _data_check(arguments: argparse.Namespace) -> int:
    """Decode every video; report, and list the bad ones in ROOT/quarantine.txt, or in DIR, which the loaders leave
    out. No video is changed. A check that was stopped goes on where it was."""
    from repflow.data.check import check

    numbers = _numbers(arguments, workers=1, seconds=1, shortest=1)
    report = check(arguments.root, out=arguments.out, **numbers)
    sys.stdout.write(f"{report.text()}\n")
    if arguments.out and report.bad:
        sys.stdout.write(
            f"\nto leave out the bad ones: --quarantine {shlex.quote(str(arguments.out))} with train, evaluate and "
            "data extract-flow, quarantine= in Python\n"
        )
    return 1 if report.bad else 0


def _add_data_extract(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", help="where the flow goes (default: ROOT's name with -flow behind it)")
    add("--workers", type=int, metavar="N", help="processes (default: one a core, or one on a GPU)")
    add("--width", type=int, metavar="PX", help="reduce wider frames first (default: not)")
    add_quarantine(parser)


def _data_extract(arguments: argparse.Namespace) -> int:
    """Compute TV-L1 flow of every video for two-stream training: u and v within 20 px as bytes, a file a video. What
    is finished is kept: a run that was stopped goes on where it was."""
    from repflow.data.extract import extract_flow

    result = extract_flow(
        arguments.root, arguments.out, **_numbers(arguments, workers=1, width=1), quarantine=arguments.quarantine
    )
    sys.stdout.write(f"{len(result.done)} done, {len(result.skipped)} there already, {len(result.failed)} failed\n")
    sys.stdout.writelines(f"{problem}\n" for problem in result.failed.values())
    return 1 if result.failed else 0


def _hand_out(rows: "list[Row]", facts: "Row", out: Path | None) -> None:
    """Print a table of `rows`, and under it what is the same for all of them; write both where a file is named."""
    from repflow.files import text_table, write_csv

    if out is not None:
        write_csv(out, [row | facts for row in rows])
    known = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
    sys.stdout.write(f"{text_table(rows)}\n\n{known}\n")


def _numbers(arguments: argparse.Namespace, **least: int) -> dict[str, int | None]:
    """The named options' values. Raises UsageError for one that is smaller than it may be."""
    values = {name: getattr(arguments, name) for name in least}
    for name, value in values.items():
        if value is not None and value < least[name]:
            raise UsageError(f"--{name}: expected a whole number >= {least[name]}, got {value}")
    return values


def _device(wanted: str | None) -> str:
    import torch

    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise UsageError("--device cuda: PyTorch finds no GPU here; take --device cpu")
    return wanted or ("cuda" if there else "cpu")


def _check_writable(out: Path | None) -> None:
    if out is not None and (out.is_dir() or not os.access(out.absolute().parent, os.W_OK)):
        raise OSError(f"{out} cannot be written; name a file in a folder that exists and is writable")
