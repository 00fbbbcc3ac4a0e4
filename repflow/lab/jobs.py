"""Which notebooks to run, and with which values of their parameters."""

import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repflow.lab.parameters import Parameter, UsageError, naming, read_parameters, unknown
from repflow.records import shipped

OWN_PAGES = {"index": "Run", "api": "Reference"}  # a run's own pages: file name and title


@dataclass(frozen=True)
class Job:
    """A notebook with the values of all its parameters, and those among them that are not the notebook's defaults."""

    notebook: Path
    values: dict[str, Any]
    changed: dict[str, Any]


def find_notebooks(names: Sequence[str] = ()) -> list[Path]:
    """Return the project's notebooks in order, or those named: by number, name, or the path of an .ipynb file.

    The project's are in the installed package or beside it in the checkout. Raises UsageError for an unknown name.
    """
    folder = shipped("notebooks")
    known = sorted(folder.glob("[0-9]*.ipynb"))  # numbered: the solutions are no run
    chosen: list[Path] = []
    for name in names:
        matches = [path for path in known if name == path.stem or name.zfill(2) == path.stem.split("_")[0]]
        if Path(name).suffix == ".ipynb" and Path(name).is_file():
            matches = [Path(name).resolve()]
        if not matches:
            listed = ", ".join(path.stem for path in known) or "none here"
            raise UsageError(f"no notebook {name!r}; there are: {listed}; or give the path of an .ipynb file")
        chosen += matches
    stems = [path.stem.casefold() for path in chosen]  # folded, for disks on which A and a are one file
    for path, stem in zip(chosen, stems, strict=True):
        if stems.count(stem) > 1:
            raise UsageError(f"{path.stem} is named twice; results are kept by name, so give each name once")
        if stem in OWN_PAGES:
            raise UsageError(f"{path}: {path.stem}.html is the run's own page; give the notebook another name")
    if not (chosen or known):
        raise UsageError(f"no notebooks in {folder}; give the path of an .ipynb file")
    return chosen or known


def plan(names: Sequence[str], overrides: Sequence[tuple[str, str]] = (), profile: str = "tiny") -> list[Job]:
    """Return what to run: each notebook's defaults, then the profile's values, then `overrides` (name, text).

    An override goes to every notebook that has a parameter of that name. Raises UsageError, before anything starts, for
    an unknown notebook or parameter and for a value of another type.

        >>> plan(["02"], [("steps", "20")])[0].changed
        {'steps': 20}
    """
    notebooks = {path: read_parameters(path) for path in find_notebooks(names)}
    for name, _ in overrides:
        if not any(name in parameters for parameters in notebooks.values()):
            raise UsageError(_no_parameter(name, notebooks))
    return [_job(path, parameters, overrides, profile) for path, parameters in notebooks.items()]


def _job(path: Path, parameters: Mapping[str, Parameter], overrides: Sequence[tuple[str, str]], profile: str) -> Job:
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    values = dict(defaults)
    with naming(f"{path.stem}: "):
        for name, value in read_profile(path.parent, profile).get(path.stem, {}).items():
            if name not in parameters:
                raise UsageError(f"profile {profile}: {_no_parameter(name, {path: parameters})}")
            values[name] = parameters[name].check(value)
        values |= {name: parameters[name].parse(text) for name, text in overrides if name in parameters}
    return Job(path, values, {name: value for name, value in values.items() if value != defaults[name]})


def _no_parameter(name: str, notebooks: Mapping[Path, Mapping[str, Parameter]]) -> str:
    listed = "; ".join(f"{path.stem} has {', '.join(names) or 'none'}" for path, names in notebooks.items())
    return f"{unknown('parameter', name, list(itertools.chain(*notebooks.values())))} {listed}"


def read_profile(folder: Path, profile: str) -> dict[str, dict[str, Any]]:
    """Return a profile's values by notebook and name, from `folder`/profiles.toml; tiny has none, it is the defaults.

    Raises UsageError if the file is missing or is no TOML.
    """
    if profile == "tiny":
        return {}
    path = folder / "profiles.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")).get(profile, {})
    except (FileNotFoundError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"the profile {profile!r} should be in {path}: {error}") from None
