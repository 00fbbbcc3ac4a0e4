"""HMDB51's official .rar files, unpacked by whatever program the machine has for them."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from tempfile import mkdtemp

from tqdm.auto import tqdm

from repflow.files import beside

Entry = tuple[str, bool]  # name, and whether it is a plain file or folder


@dataclass(frozen=True)
class _Tool:
    name: str
    unpack: list[str]
    entries: Callable[[str, str], list[Entry]]


def _ask(*command: str, cwd: Path | None = None) -> str:
    # No input: a question about a password or an overwriting would be waited for without end.
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, cwd=cwd)
    if done.returncode:
        said = (done.stderr + done.stdout).decode(errors="replace").split()
        raise OSError(f"{Path(command[0]).name} said: {' '.join(said[:40]) or f'exit code {done.returncode}'}")
    return done.stdout.decode(errors="surrogateescape")


def _bsdtar(program: str, archive: str) -> list[Entry]:
    names, long = (_ask(program, flag, archive).splitlines() for flag in ("-tf", "-tvf"))
    return [(name, line[0] in "-d") for name, line in zip(names, long, strict=True)]


def _unar(program: str, archive: str) -> list[Entry]:
    contents = json.loads(_ask(str(Path(program).with_name("lsar")), "-j", archive)).get("lsarContents", [])
    return [(entry["XADFileName"], not entry.get("XADIsLink")) for entry in contents]


def _unrar(program: str, archive: str) -> list[Entry]:
    return re.findall(r"^ *Name: (.*)\n *Type: (File|Directory)?", _ask(program, "lt", "-p-", archive), re.MULTILINE)


def _seven_zip(program: str, archive: str) -> list[Entry]:
    link = re.compile(r"^(Symbolic|Hard) Link = .|^(Attributes|Mode) = .*\bl[rwx-]{9}", re.MULTILINE)
    blocks = re.split(r"^Path = ", _ask(program, "l", "-slt", "-ba", archive), flags=re.MULTILINE)[1:]
    return [(block.partition("\n")[0], not link.search(block)) for block in blocks]


_TOOLS = (
    _Tool("bsdtar", ["-xf"], _bsdtar),
    _Tool("unar", ["-quiet", "-no-directory"], _unar),
    _Tool("unrar", ["x", "-p-", "-idq"], _unrar),
    _Tool("7zz", ["x", "-y"], _seven_zip),
    _Tool("7z", ["x", "-y"], _seven_zip),
)


def unpack_hmdb51(root: str | os.PathLike[str]) -> list[str]:
    """Unpacks the official .rar files that lie in `root`; returns the names of the folders that are new there.

    hmdb51_org.rar holds one .rar file a class; these may lie in `root` themselves, and test_train_splits.rar with
    them. Folders appear whole or not at all; those that are there already are kept as they are, and so are the .rar
    files. Any of bsdtar, unar, unrar, 7zz and 7z will do that can read the files.

    Raises FileNotFoundError where there is no .rar file or no program, OSError where no program can read one, and
    ValueError for an archive that holds links, names that lead out of it or files outside folders.
    """
    root = Path(root).absolute()
    archives = sorted(root.glob("[!.]*.rar"))
    if not archives:
        raise FileNotFoundError(f"{str(root)!r}: expected HMDB51's .rar files there, found none; check the path")
    new: list[str] = []
    with beside(root / "unpacking") as space:
        if (outer := root / "hmdb51_org.rar") in archives:
            archives.remove(outer)
            archives += sorted(_unpack(outer, space).glob("*.rar"))
        for archive in tqdm(archives, desc="unpacking", unit="archive"):
            if not os.path.lexists(root / archive.stem):
                new += _place(archive, _unpack(archive, space), root)
    return new


def _unpack(archive: Path, space: Path) -> Path:
    """A new folder in `space` with what the archive holds, written by the first program that can read it."""
    programs = [(tool, program) for tool in _TOOLS if (program := shutil.which(tool.name))]
    if not programs:
        raise FileNotFoundError(
            f"{str(archive)!r}: expected one of the programs {', '.join(tool.name for tool in _TOOLS)} to unpack it, "
            "found none; on Debian: sudo apt-get install libarchive-tools"
        )
    failures = []
    for tool, program in programs:
        folder = Path(mkdtemp(dir=space))
        try:
            _check(archive, tool.entries(program, str(archive)))
            _ask(program, *tool.unpack, str(archive), cwd=folder)
            _check(archive, [(path.name, not path.is_symlink()) for path in folder.rglob("*")])
            return folder
        except OSError as error:
            failures.append(str(error))
    raise OSError(
        f"{str(archive)!r}: no program here could unpack it ({'; '.join(failures)}); if the file is whole, then on "
        "Debian: sudo apt-get install libarchive-tools, or unar"
    )


def _check(archive: Path, entries: list[Entry]) -> None:
    if not entries:
        raise OSError("no files in it")
    for name, plain in entries:
        path = PureWindowsPath(name)  # knows slashes of both kinds
        if path.anchor or ".." in path.parts or not plain:
            raise ValueError(
                f"{str(archive)!r}: expected plain files under the archive's own folders, got {name!r}"
                f"{'' if plain else ', a link'}; nothing of it was kept: get the official file"
            )


def _place(archive: Path, folder: Path, root: Path) -> list[str]:
    """Moves the folders in `folder` to `root`, and names those that were not there."""
    found = sorted(folder.iterdir())
    if loose := [path.name for path in found if not path.is_dir()]:
        raise ValueError(f"{str(archive)!r}: expected folders in it, got the files {loose[:3]}; get the official file")
    new = [path for path in found if not os.path.lexists(root / path.name)]
    for path in new:
        path.rename(root / path.name)
    return [path.name for path in new]
