"""A TV-L1 playground in the reader's browser: in JupyterLab, VS Code and Colab, and on a page without a kernel."""

from pathlib import Path
from uuid import uuid4

import anywidget
from traitlets import Enum

_SCRIPT = Path(__file__).with_suffix(".js")


class Playground(anywidget.AnyWidget):
    """Sliders, frames and one pixel's life in TV-L1 at one scale; nothing is asked of the kernel.

    layers: 1 shows the flow of two frames (Zach, Pock and Bischof 2007), 2 the flow of the flow's u among three frames
        (Piergiovanni and Ryoo 2019, section 3.3). Any other number raises TraitError.

        from repflow.playground import Playground
        Playground(layers=2)
    """

    _esm = _SCRIPT
    layers = Enum((1, 2), 1).tag(sync=True)

    def _repr_mimebundle_(self, **_: object) -> tuple[dict, dict]:
        """The widget, and for pages the same script with a host of one line."""
        data, metadata = super()._repr_mimebundle_()
        name = f"playground-{uuid4()}"
        host = f'render({{ model: {{ get: () => {self.layers} }}, el: document.getElementById("{name}") }});'
        script = f"{_SCRIPT.read_text(encoding='utf-8')}\n{host}"
        data["text/html"] = f'<div id="{name}"></div>\n<script type="module">\n{script}\n</script>'
        return data, metadata
