"""The process of one point of a sweep: `point.py STUDY PARAMETERS OUT`, the second as JSON.

STUDY is `module:function`. What it returns is written to the file OUT. It is run as a file, apart from the package, so
that a study that needs no PyTorch starts without it.
"""

import importlib
import json
import signal
import sys
from pathlib import Path


def main() -> None:
    """Run the study that the command line names."""
    study, parameters, out = sys.argv[1:]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ctrl-C: what is unfinished is cleaned up
    module, _, function = study.partition(":")
    metrics = getattr(importlib.import_module(module), function)(**json.loads(parameters))
    Path(out).write_text(json.dumps(metrics), encoding="utf-8")


if __name__ == "__main__":
    main()
