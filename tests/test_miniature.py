"""The layouts of HMDB51 and Kinetics rebuilt in miniature from real videos: loaded, checked, extracted, trained on."""

from itertools import islice

import av
import numpy as np
import pytest
import torch

from repflow.data import HMDB51, Clips, Kinetics
from repflow.data.check import check
from repflow.data.extract import extract_flow
from repflow.training import Recipe, predict, train


def copy(video, target):
    """The first 40 packets, as they are."""
    with av.open(str(video)) as source, av.open(str(target), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in islice(source.demux(video=0), 40):
            packet.stream = stream
            container.mux(packet)


def hmdb51(root, videos):
    names = {"wave": ["test.avi", "skeleton.mp4"], "brush_hair": ["test.mp4", "arm_wrestling.mp4"]}
    for label, files in names.items():
        (root / label).mkdir(parents=True)
        for file in files:
            copy(videos / file, root / label / file)
        split = [f"{file.split('.')[0]}.avi {tag}\n" for tag, file in enumerate(files, 1)]
        (root / f"{label}_test_split1.txt").write_text("".join(split))
    return lambda subset: HMDB51(root, subset=subset)


def kinetics(root, videos):
    rows = ["label,youtube_id,time_start,time_end,split"]
    for subset, files in (("train", ["arm_wrestling.mp4", "test.avi"]), ("val", ["skeleton.mp4", "test.mp4"])):
        for i, file in enumerate(files):
            label = ("arm wrestling", "abseiling")[i]
            (root / subset / label.replace(" ", "_")).mkdir(parents=True, exist_ok=True)
            name = f"{subset:a<11}_{i:06}_{i + 10:06}"
            copy(videos / file, root / subset / label.replace(" ", "_") / f"{name}{file[-4:]}")
            rows.append(f"{label},{subset:a<11},{i},{i + 10},{subset}")
        rows.append(f"abseiling,gone{subset:-<7},3,13,{subset}")
    (root / "all.csv").write_text("\r\n".join(rows))
    return lambda subset: Kinetics(root, subset, csv=root / "all.csv", classes=["abseiling", "arm wrestling"])


@pytest.mark.parametrize("layout", [hmdb51, kinetics])
def test_from_the_folder_to_a_trained_step(layout, shared, tmp_path):
    data = layout(tmp_path / "set", shared / "videos")
    report = check(tmp_path / "set", workers=1)
    assert not report.bad
    assert len(report.rows) == 4
    result = extract_flow(tmp_path / "set", width=64, workers=1)
    assert (len(result.done), result.failed) == (4, {})

    training = data("train")
    assert (len(training), len(training.missing)) == (2, int(layout is kinetics))
    settings = {"resize": 40, "crop": 36, "flow": tmp_path / "set-flow"}
    items = list(Clips(training, 4, 8, train=True, **settings))
    assert [label for _, label in items] == [label for _, label in training.samples]
    for (clip, flow), _ in items:
        assert (clip.shape, flow.shape) == ((3, 4, 36, 36), (2, 4, 36, 36))
    assert 0 < max(flow.abs().max() for (_, flow), _ in items) <= 1  # one of them may stand still

    clips = Clips(training, 4, 2, train=True, resize=40, crop=36)
    trained = train("repflow_2d", clips, 2, Recipe(steps=1, batch=2), iterations=2, bottleneck=2, backbone="tiny_2d")
    assert np.isfinite(trained.losses).all()
    scores = predict(trained.model, Clips(data("test" if layout is hmdb51 else "val"), 4, 2, train=False, crop=36))
    assert scores.shape == (2, 2)
    assert torch.tensor(scores).isfinite().all()
