"""The picture of the package in CONTRIBUTING.md, from its imports: `python tools/map.py` (in the checkout)."""

import itertools
from pathlib import Path

import grimp
import networkx
from markers import write_marked

HIDDEN = {"__main__", "_version", "benchmark", "experiments"}  # the entry point, a constant, former names


def rooms() -> networkx.DiGraph:
    """Which room imports which: top-level modules and those of lab/. Arrows that follow from others are left out."""
    modules = grimp.build_graph("repflow", cache_dir=None)
    names = modules.find_children("repflow") | modules.find_children("repflow.lab")
    arrows = networkx.DiGraph()
    for importer, imported in itertools.permutations(sorted(names), 2):
        # "lab" stands for the frame around its modules: an arrow to it is one to any of them.
        inside = imported.startswith("repflow.lab.") and importer == "repflow.lab"
        related = importer.startswith("repflow.lab") and imported.startswith("repflow.lab")
        if inside or (
            importer != "repflow.lab"
            and not (related and imported == "repflow.lab")
            and modules.direct_import_exists(importer=importer, imported=imported, as_packages=True)
        ):
            arrows.add_edge(importer.removeprefix("repflow."), imported.removeprefix("repflow."))
    arrows.remove_nodes_from(HIDDEN)
    return networkx.transitive_reduction(arrows)


def picture() -> str:
    """The same as Mermaid, which GitHub draws."""
    arrows = rooms()
    lab = [f"    {name}[{name.removeprefix('lab.')}]" for name in sorted(arrows) if name.startswith("lab.")]
    lines = [f"  {importer} --> {imported}" for importer, imported in sorted(arrows.edges) if importer != "lab"]
    return "\n".join(["```mermaid", "graph TD", "  subgraph lab", *lab, "  end", *lines, "```", ""])


if __name__ == "__main__":
    write_marked(Path(__file__).parents[1] / "CONTRIBUTING.md", {"map": picture()})
