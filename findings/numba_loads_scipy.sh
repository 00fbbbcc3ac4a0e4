#!/usr/bin/env bash
# Numba: the first call of x + 1, compiled before and kept on disk, imports SciPy's linear algebra where SciPy is installed.
#
# Before any kept function is used, Numba loads all that it knows of NumPy, and asks for the BLAS that SciPy brings. The first call in a
# short command so takes most of a second, and about half of that where SciPy is not installed.
#
# Guess: a kept function is loaded alone.
# Seen (the guess failed), with two cores, in 0.63 and 0.28 s:
#   Numba 0.68.1, with SciPy: from disk 1, modules of scipy.linalg some
#   Numba 0.68.1, without SciPy: from disk 1, modules of scipy.linalg none
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > added.py <<'END'
import numba


@numba.njit(cache=True)
def add(x):
    return x + 1
END
cat > first_call.py <<'END'
import sys
from time import perf_counter

import numba
from added import add

before, start = set(sys.modules), perf_counter()
add(1)
seconds, new = perf_counter() - start, set(sys.modules) - before
kept = sum(add.stats.cache_hits.values())
linear = sum(name.split(".")[:2] == ["scipy", "linalg"] for name in new)
sys.stderr.write(f"{seconds:.2f} s\n")
print(f"Numba {numba.__version__}, {sys.argv[1]}: from disk {kept}, modules of scipy.linalg {'some' if linear else 'none'}")
END
for name in with without; do
  python3 -m venv $name
  $name/bin/pip install -q numba==0.68.1 numpy==2.4.6 $([ $name = with ] && echo scipy==1.17.1)
  $name/bin/python first_call.py "$name SciPy" >/dev/null 2>&1  # compiles
  $name/bin/python first_call.py "$name SciPy" | tee -a seen
done
cat > expected <<'END'
Numba 0.68.1, with SciPy: from disk 1, modules of scipy.linalg some
Numba 0.68.1, without SciPy: from disk 1, modules of scipy.linalg none
END
cmp -s seen expected || { echo "changed"; exit 1; }
