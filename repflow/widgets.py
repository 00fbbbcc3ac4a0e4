"""Sliders around figures, for JupyterLab. Core ipywidgets only."""

import io
from time import perf_counter

import ipywidgets as widgets
import numpy as np

from repflow.figures import flow_panel
from repflow.tvl1 import tvl1


def tvl1_explorer(frame1: np.ndarray, frame2: np.ndarray, true: np.ndarray | None = None) -> widgets.Widget:
    """Sliders for `tvl1`'s parameters above its `flow_panel`, solved again when a slider is let go.

    frame1, frame2: grey (H, W) in 0..255. With the true flow (2, H, W) the title also tells the mean end-point error.
    """
    sliders = {
        "lam": widgets.FloatLogSlider(0.15, min=-2.5, max=0.5, step=0.05, readout_format=".3f"),
        "theta": widgets.FloatSlider(value=0.3, min=0.05, max=1.0, step=0.05),
        "tau": widgets.FloatSlider(value=0.25, min=0.01, max=0.5, step=0.01),
        "iterations": widgets.IntSlider(value=30, min=1, max=100),
        "warps": widgets.IntSlider(value=5, min=1, max=10),
        "scales": widgets.IntSlider(value=5, min=1, max=6),
    }
    picture = widgets.Image(format="png", layout=widgets.Layout(height="560px", object_fit="contain"))

    def solve(_: object = None) -> None:
        start = perf_counter()
        flow = tvl1(frame1, frame2, **{name: slider.value for name, slider in sliders.items()}).numpy()
        title = f"solved in {1000 * (perf_counter() - start):.0f} ms"
        if true is not None:
            title += f", mean end-point error {np.hypot(*(flow - true)).mean():.3f} px"
        file = io.BytesIO()
        flow_panel(frame1, frame2, flow, title).savefig(file, format="png", dpi=80)
        picture.value = file.getvalue()

    for name, slider in sliders.items():
        slider.description, slider.continuous_update = name, False
        slider.observe(solve, "value")
    solve()
    columns = list(sliders.values())
    return widgets.VBox([widgets.HBox([widgets.VBox(columns[:3]), widgets.VBox(columns[3:])]), picture])
