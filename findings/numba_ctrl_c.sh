#!/usr/bin/env bash
# ctrl-C that comes while Numba loads a compiled function is lost: the program goes on to its end.
#
# Numba hands cached machine code to LLVM in a callback from C (ctypes). Python runs a signal's handler at the next line of Python
# code, which may be inside that callback; its KeyboardInterrupt cannot leave it, is printed as ignored, and nobody gets it. The first
# call in a process loads dozens of functions, so a stopped job that is just beginning may never stop. Python offers
# sys.unraisablehook to learn of it.
#
# Guess: the interrupt is raised once the function is loaded.
# Seen (the guess failed):
#   numba 0.68.1, llvmlite 0.50.0
#   interrupted while loading: the call returned 4950.0; outside: KeyboardInterrupt
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install -q numba==0.68.1 llvmlite==0.50.0 numpy==2.4.6
cat > total.py <<'END'
import numba


@numba.njit(cache=True)
def total(n):
    s = 0.0
    for i in range(n):
        s += i
    return s
END
env/bin/python -c "import total; total.total(3)" # fills the cache
cat > interrupted.py <<'END'
import signal
import sys

import llvmlite
import numba

import total


def interrupt(frame, event, _):
    """A SIGINT arrives while LLVM asks for the machine code, or where the loaded function is called from."""
    if event == "call" and frame.f_code.co_name == place:
        sys.setprofile(None)
        signal.raise_signal(signal.SIGINT)


def outcome(call):
    sys.setprofile(interrupt)
    try:
        return f"the call returned {call()}"
    except KeyboardInterrupt:
        return "KeyboardInterrupt"
    finally:
        sys.setprofile(None)


def plain():
    return total.total(100)


print(f"numba {numba.__version__}, llvmlite {llvmlite.__version__}")
place = "_raw_object_cache_getbuffer"
loading = outcome(plain)
place = "plain"
outside = outcome(plain)
print(f"interrupted while loading: {loading}; outside: {outside}")
if (loading, outside) != ("the call returned 4950.0", "KeyboardInterrupt"):
    sys.exit("changed: an interrupt while a function is loaded is no longer lost")
END
env/bin/python interrupted.py 2> ignored.txt || { cat ignored.txt; exit 1; }
grep -q "KeyboardInterrupt" ignored.txt
