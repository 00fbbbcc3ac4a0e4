"""HMDB51's official .rar files: rarfile tells what is in them, and whatever program the machine has unpacks them.

rarfile could also unpack, but it starts a program for every file, and calls bsdtar in a way that bsdtar refuses.
"""

import os
import shutil
import subprocess
from pathlib import Path, PureWindowsPath
from tempfile import mkdtemp

import rarfile
from tqdm.auto import tqdm

from repflow.files import beside

_PROGRAMS = ("bsdtar -xf", "unar -quiet -no-directory", "unrar x -p- -idq", "7zz x -y", "7z x -y")
_COMMANDS = [program.split() for program in _PROGRAMS]


def unpack_hmdb51(root: str | os.PathLike[str]) -> list[str]:
    """Unpack the official .rar files that lie in `root`; return the names of the folders that are new there.

    hmdb51_org.rar holds one .rar file for each class; these may also lie in `root` themselves, and
    test_train_splits.rar with them. Folders appear whole or not at all. Folders that exist are kept as they are, and so
    are the .rar files.

    Raises FileNotFoundError where there is no .rar file or no program, OSError where no program can read one, and
    ValueError for an archive that holds links, names that lead out of it or files outside folders.

        unpack_hmdb51("data/hmdb51")  # ["brush_hair", "cartwheel", ...]
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
    """A new folder in `space` with the content of the archive, unpacked by the first program that can."""
    _check(archive)
    commands = [command for command in _COMMANDS if shutil.which(command[0])]
    if not commands:
        raise FileNotFoundError(
            f"{str(archive)!r}: expected one of the programs {', '.join(name for name, *_ in _COMMANDS)} to unpack it, "
            "found none; on Debian: sudo apt-get install libarchive-tools"
        )
    failures = []
    for command in commands:
        folder = Path(mkdtemp(dir=space))
        # No input: a question about a password or an overwriting would be waited for without end.
        done = subprocess.run((*command, archive), stdin=subprocess.DEVNULL, capture_output=True, cwd=folder)
        unpacked = list(folder.rglob("*"))
        if links := [path.name for path in unpacked if path.is_symlink()]:
            raise _refusal(archive, links[0])
        if unpacked and not done.returncode:
            return folder
        words = (done.stderr + done.stdout).decode(errors="replace").split()
        failures.append(f"{command[0]} said: {' '.join(words[:40]) or f'exit code {done.returncode}'}")
    raise OSError(
        f"{str(archive)!r}: no program here could unpack it ({'; '.join(failures)}); if the file is whole, then on "
        "Debian: sudo apt-get install libarchive-tools, or unar"
    )


def _check(archive: Path) -> None:
    """Raise OSError for what is no .rar file, ValueError for one that would write elsewhere than below its folder."""
    try:
        with rarfile.RarFile(archive) as content:
            entries = content.infolist()
    except rarfile.Error as error:
        raise OSError(f"{str(archive)!r}: expected a .rar file, {error}; fetch it again") from error
    for entry in entries:
        path = PureWindowsPath(entry.filename)  # knows slashes of both kinds
        if path.anchor or ".." in path.parts or not (entry.is_file() or entry.is_dir()):
            raise _refusal(archive, entry.filename)


def _refusal(archive: Path, name: str) -> ValueError:
    return ValueError(
        f"{str(archive)!r}: expected plain files under the archive's own folders, got {name!r}, which leads out of "
        "them or is a link; nothing of the archive was kept: get the official file"
    )


def _place(archive: Path, folder: Path, root: Path) -> list[str]:
    """Move the folders in `folder` to `root`, and name those that are new there."""
    unpacked = sorted(folder.iterdir())
    if loose := [path.name for path in unpacked if not path.is_dir()]:
        raise ValueError(f"{str(archive)!r}: expected folders in it, got the files {loose[:3]}; get the official file")
    new = [path for path in unpacked if not os.path.lexists(root / path.name)]
    for path in new:
        path.rename(root / path.name)
    return [path.name for path in new]
