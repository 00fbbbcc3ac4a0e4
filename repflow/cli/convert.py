"""`repflow convert`."""

import argparse
import sys
from pathlib import Path


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="FILE", help="a .pt file of the 2019 release")
    parser.add_argument("out", type=Path, metavar="DIR", help="gets model.safetensors and model.json")


def run(arguments: argparse.Namespace) -> int:
    """Rewrite a checkpoint of the 2019 release, Kinetics or HMDB51 flow-of-flow, as weights that no program is in."""
    from repflow.official import convert, kind_of

    convert(arguments.checkpoint, kind_of(arguments.checkpoint), arguments.out)
    sys.stdout.write(f"{arguments.out}\n")
    return 0
