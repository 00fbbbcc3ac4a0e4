"""Clips for training and testing: sampling, views, and what happens when videos are bad."""

import logging
import os
import signal
import time
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as torchvision

from repflow import tvl1
from repflow.data import HMDB51, PRESETS, Clips, SyntheticMotion, Views, clips
from repflow.data import flow as data_flow
from repflow.data.check import check
from repflow.data.clips import resize_flow
from repflow.data.extract import extract_flow
from repflow.data.flow import flow_of_clip, resize
from repflow.models import build_model
from repflow.training import Recipe, predict, train
from repflow.training.batches import split
from repflow.tvl1 import grey
from repflow.video import VideoError, probe, read_clip, reading
from repflow.video.reading import choose_frames


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    SyntheticMotion.make(folder / "set", train=2, test=1, unused=0, size=40, frames=9)
    return folder / "set"


@pytest.fixture
def source(made, tmp_path):
    """A function that makes data sets of so many good and bad videos, the bad ones first."""

    def make(good, bad):
        names = []
        for i in range(bad):
            names.append(tmp_path / f"bad{i}.avi")
            names[-1].write_bytes(b"no video")
        there = [path for path, _ in SyntheticMotion(made).samples]
        names += [there[i % len(there)] for i in range(good)]
        return SimpleNamespace(samples=[(name, i % 12) for i, name in enumerate(names)])

    return make


def undirected(made):
    return SimpleNamespace(samples=SyntheticMotion(made).samples)


def test_area_crops_are_shares_of_the_frame(made, monkeypatch):
    """Of a frame whose red and green tell the place, so that a crop shows what was cut out."""
    y, x = np.mgrid[:40, :40].astype(np.uint8) * 6
    ramp = np.stack([x, y, np.zeros_like(x)], -1)
    monkeypatch.setattr(clips, "choose_frames", lambda path, numbers, held: [ramp] * len(numbers))
    data = Clips(SyntheticMotion(made), 3, train=True, crop=24, area=(0.25, 0.5))
    shares, ratios = [], []
    for epoch in range(60):
        data.set_epoch(epoch)
        clip, _ = data[0]
        assert clip.shape == (3, 3, 24, 24)
        assert torch.equal(clip, data[0][0])
        red, green = ((clip[c, 0] + 1) * 127.5 / 6 for c in (0, 1))
        w, h = ((ends.max() - ends.min()) * 24 / 23 + 0.3 for ends in (red, green))  # ends are pixels' centres
        shares.append(float(w * h / 1600))
        ratios.append(float(w / h))
    assert 0.22 < min(shares) < 0.32
    assert 0.43 < max(shares) < 0.53
    assert 0.65 < min(ratios) < 0.9
    assert 1.1 < max(ratios) < 1.5


@pytest.mark.parametrize("area", [(0, 1), (0.5, 0.2), (0.5, 1.5)])
def test_a_bad_area_is_refused(made, area):
    with pytest.raises(ValueError, match="area"):
        Clips(SyntheticMotion(made), 3, train=True, crop=24, area=area)


def test_flips_mirror_half_of_the_training_clips(made):
    plain = Clips(undirected(made), 9, train=True)
    flipping = Clips(undirected(made), 9, train=True, flip=True)
    flipped = 0
    for epoch in range(4):
        flipping.set_epoch(epoch)
        for i in range(len(plain)):
            clip, expected = flipping[i][0], plain[i][0]
            if not torch.equal(clip, expected):
                assert torch.equal(clip, expected.flip(-1))
                flipped += 1
    assert 0.3 < flipped / (4 * len(plain)) < 0.7
    still = Clips(undirected(made), 9, train=False, flip=True)
    assert torch.equal(still[0][0], plain[0][0])


@pytest.fixture
def still(made, monkeypatch):
    """A function that makes training clips of equal frames of random pixels, between 60 and 160, with random flow."""
    draw = np.random.default_rng(0)
    frame, flow = draw.integers(60, 160, (40, 40, 3), np.uint8), draw.normal(size=(3, 2, 40, 40)).astype(np.float32)
    monkeypatch.setattr(clips, "flow_at", lambda *_: flow)
    monkeypatch.setattr(clips, "choose_frames", lambda path, numbers, held: [frame] * len(numbers))
    return lambda **options: Clips(undirected(made), 3, train=True, **options)


@pytest.mark.parametrize("change", [{"jitter": (0.4, 0.4, 0.4, 0.1)}, {"augment": (2, 15)}])
def test_colours_change_once_a_clip(change, still):
    plain, changed = still(), still(**change)
    values = [changed[i][0] for i in range(len(changed))]
    assert all(torch.equal(value, value[:, :1].expand_as(value)) for value in values)  # every frame alike
    assert sum(torch.equal(value, plain[0][0]) for value in values) < len(values) / 2
    assert len({value.numpy().tobytes() for value in values}) > len(values) / 2
    state = torch.get_rng_state()
    assert torch.equal(changed.draw(0, 5)[0], values[5])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(changed.draw(1, 5)[0], values[5]) or not torch.equal(changed.draw(1, 6)[0], values[6])
    for (clip, _), value in zip(DataLoader(changed, None, num_workers=2), values, strict=True):
        assert torch.equal(clip, value)


def test_brightness_is_one_factor_of_a_clip_and_its_draw_leaves_the_crop_alone(still):
    """The flow, too."""
    options = {"crop": 24, "flip": True, "flow": "tvl1"}
    plain, changed = still(**options), still(jitter=(0.5, 0, 0, 0), **options)
    factors = []
    for i in range(12):
        ((clip, flow), _), ((expected, its_flow), _) = changed[i], plain[i]
        assert torch.equal(flow, its_flow)
        pixels, its_pixels = ((x + 1) * 127.5 for x in (clip, expected))
        factors.append(float(pixels.sum() / its_pixels.sum()))
        torch.testing.assert_close(pixels, its_pixels * factors[-1], rtol=0, atol=1)  # rounded to whole levels
    assert 0.5 <= min(factors) < 0.8
    assert 1.2 < max(factors) <= 1.5


def test_colours_of_test_clips_stay(made):
    plain = Clips(SyntheticMotion(made), 3, train=False)
    changed = Clips(SyntheticMotion(made), 3, train=False, jitter=(0.5, 0.5, 0.5, 0.5), augment=(2, 30))
    assert torch.equal(plain[0][0], changed[0][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"jitter": (0, 0, 0, 0.6)}, "hue"), ({"jitter": (-1, 0, 0, 0)}, "strengths >= 0"),
     ({"augment": (0, 9)}, "one operation"), ({"augment": (2, 31)}, "from 0 to 30"),
     ({"augment": (2, 9), "flow": "tvl1"}, "flow would not follow")],
)  # fmt: skip
def test_changes_of_colour_that_cannot_be_are_refused(options, message, made):
    with pytest.raises(ValueError, match=message):
        Clips(SyntheticMotion(made), 3, train=True, **options)


def test_a_set_that_tells_left_from_right_is_never_flipped(made):
    with pytest.raises(ValueError, match="left from right"):
        Clips(SyntheticMotion(made), 9, train=True, flip=True)


def test_the_2019_preset(made):
    assert PRESETS["2019"] == {"frames": 16, "stride": 2, "crop": 112, "inverted": True}
    preset = PRESETS["2019"] | {"frames": 3, "crop": 32}
    clip, _ = Clips(SyntheticMotion(made), train=False, **preset)[0]
    usual, _ = Clips(SyntheticMotion(made), 3, 2, train=False, crop=32)[0]
    torch.testing.assert_close(clip, -usual)


def test_halved_clips_have_every_second_pixel_of_every_second_row(made, tmp_path):
    source = SyntheticMotion(made)
    pixels = read_clip(source.samples[0][0], 4, 1)[0]  # the middle one of nine
    clip, _ = Clips(source, 1, train=False, halved=True)[0]
    assert clip.shape == (3, 1, 20, 20)
    for y, x in ((0, 0), (1, 3), (10, 7), (19, 19)):
        np.testing.assert_allclose(clip[:, 0, y, x], pixels[2 * y, 2 * x] / 127.5 - 1, atol=1e-6)
    views, _ = Views(source, 1, clips=1, crop=8, halved=True)[0]
    assert torch.equal(views[0], clip[..., 6:14, 6:14])
    reduced, cached = (Clips(source, 1, train=False, resize=30, halved=True, cache=c)[0][0] for c in (None, tmp_path))
    assert reduced.shape == (3, 1, 15, 15)
    assert torch.equal(reduced, cached)


def test_views_are_spread_over_the_video_and_the_longer_side(made):
    data = Views(SyntheticMotion(made), 2, 2, clips=4, crops=3, crop=30)
    views, label = data[3]
    path, truth = data.samples[3]
    assert label == truth
    assert views.shape == (12, 3, 2, 30, 30)
    pixels = torch.from_numpy(read_clip(path)).permute(3, 0, 1, 2) * (2 / 255) - 1
    for i, start in enumerate((0, 2, 4, 6)):
        for j, left in enumerate((0, 5, 10)):
            expected = pixels[:, start : start + 3 : 2, 5:35, left : left + 30]
            torch.testing.assert_close(views[3 * i + j], expected, rtol=0, atol=1e-6)


def test_one_view_is_the_test_clip(made):
    settings = {"resize": 36, "crop": 30}
    (view,), _ = Views(SyntheticMotion(made), 4, clips=1, **settings)[5]
    assert torch.equal(view, Clips(SyntheticMotion(made), 4, train=False, **settings)[5][0])


def test_views_of_a_short_video_repeat_it(made):
    views, _ = Views(SyntheticMotion(made), 12, clips=2)[0]
    assert torch.equal(views[0], views[1])
    assert torch.equal(views[0][:, :3], views[0][:, 9:])


@pytest.mark.parametrize("settings", [{"clips": 0}, {"crops": 2, "crop": 20}, {"crops": 3}])
def test_bad_views_are_refused(made, settings):
    with pytest.raises(ValueError, match="expected clips >= 1, crops 1 or 3"):
        Views(SyntheticMotion(made), 3, **settings)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_change_nothing_however_they_start(made, method):
    settings = {"train": True, "crop": 20, "area": (0.3, 1.0), "flip": True}
    expected = list(DataLoader(Clips(undirected(made), 4, **settings), 5))
    for workers in (1, 2) if method == "fork" else (2,):
        loader = DataLoader(
            Clips(undirected(made), 4, **settings), 5, num_workers=workers, multiprocessing_context=method
        )
        for ours, theirs in zip(loader, expected, strict=True):
            assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_video_is_replaced_and_named_in_training(source, workers):
    data = Clips(source(good=150, bad=1), 3, train=True)
    batches = list(DataLoader(data, 16, num_workers=workers))
    assert sum(len(labels) for _, labels in batches) == 151
    assert [os.path.basename(name) for name in data.bad] == ["bad0.avi"]


def test_the_log_names_it_once(source, caplog):
    data = Clips(source(good=150, bad=1), 3, train=True)
    with caplog.at_level(logging.WARNING):
        clip, _ = data[0]
        data[0]
    assert clip.shape == (3, 3, 40, 40)
    assert ["bad0.avi" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_one_percent_stop_the_run(source, workers):
    data = Clips(source(good=150, bad=2), 3, train=True)
    with pytest.raises(VideoError, match=r"2 of 152 videos cannot be read, more than 1%") as caught:
        list(DataLoader(data, 16, num_workers=workers))
    assert "bad0.avi" in str(caught.value)
    assert "bad1.avi" in str(caught.value)


def test_testing_replaces_nothing(source, caplog):
    data = Clips(source(good=5, bad=2), 4, train=False)
    with pytest.raises(VideoError, match=r"bad0\.avi"):
        data[0]
    model = build_model("rgb_2d", 12, backbone="tiny_2d").eval()
    with caplog.at_level(logging.WARNING):
        scores = predict(model, data, batch=2)
    assert scores.shape == (7, 12)
    assert np.isnan(scores[:2]).all()
    assert np.isfinite(scores[2:]).all()
    good = Clips(SimpleNamespace(samples=data.samples[2:]), 4, train=False)
    np.testing.assert_allclose(scores[2:], predict(model, good), rtol=1e-4, atol=1e-5)
    assert sum("not evaluated" in record.message for record in caplog.records) == 2


def test_scores_of_views_are_the_mean_of_their_softmax(made):
    model, data = build_model("rgb_2d", 12, backbone="tiny_2d").eval(), Views(SyntheticMotion(made, "test"), 4, clips=3)
    scores = predict(model, data, batch=6)
    with torch.no_grad():
        expected = torch.stack([model(views).softmax(-1).mean(0) for views, _ in data])
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)


def test_a_worker_that_dies_ends_the_run_and_names_its_video(made, monkeypatch):
    data = Clips(SyntheticMotion(made), 4, train=True)
    deadly = data.samples[3][0]

    def read(path, *arguments):
        if path == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return choose_frames(path, *arguments)

    monkeypatch.setattr(clips, "choose_frames", read)
    with pytest.raises(VideoError, match=f"{deadly.name}.* died"):
        train("rgb_2d", data, 12, Recipe(steps=4, batch=8, workers=1), backbone="tiny_2d")


def test_a_video_is_named_when_the_connection_breaks_before_its_reader_has_ended(made, monkeypatch, tmp_path):
    data = Clips(SyntheticMotion(made), 4, train=False)
    deadly = data.samples[0][0]

    def read(path, *arguments):
        (tmp_path / "reading").touch()
        time.sleep(0.5)  # the reader is still alive when the connection is seen to be broken
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(clips, "choose_frames", read)
    batches = iter(DataLoader(data, num_workers=1))
    while not (tmp_path / "reading").exists():
        time.sleep(0.01)
    assert data.being_read(EOFError()) == [str(deadly)]
    assert data.being_read(RuntimeError("of another kind")) == []
    del batches


@pytest.fixture
def b_frames(tmp_path):
    """A data set of one MPEG-4 video of 90 frames with B-frames in AVI, whose length only decoding tells."""
    root = tmp_path / "set"
    (root / "wave").mkdir(parents=True)
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    pictures = (np.roll(picture, shift, 1) for shift in range(90))
    with av.open(str(root / "wave" / "a #1.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for shown in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        container.mux(stream.encode())
    (root / "wave_test_split1.txt").write_text("a #1.avi 1\n")
    return root


@pytest.fixture
def openings(monkeypatch):
    """How many videos were opened, in its only element."""
    count, av_open = [0], av.open

    def counted(*arguments, **options):
        count[0] += 1
        return av_open(*arguments, **options)

    monkeypatch.setattr(av, "open", counted)
    return count


def openings_of(clips, openings):
    openings[0] = 0
    clips[0]
    return openings[0]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_lengths_that_a_check_found_are_not_counted_again(b_frames, tmp_path, openings, elsewhere):
    out = tmp_path / "out" if elsewhere else b_frames
    check(b_frames, out=out)
    source = HMDB51(b_frames, quarantine=out if elsewhere else None)
    data = Clips(source, 16, 2, train=False)
    assert [openings_of(data, openings) for _ in range(3)] == [2, 1, 1]
    clip = (data[0][0] + 1) * 127.5
    np.testing.assert_allclose(clip.permute(1, 2, 3, 0), read_clip(source.samples[0][0], 29, 16, 2), atol=0.01)
    parts = split(SimpleNamespace(root=b_frames, samples=source.samples * 2, checked=source.checked), 0.5, 0)
    assert [openings_of(Clips(part, 16, 2, train=False), openings) for part in parts] == [1, 1]


def test_lengths_of_changed_videos_are_counted(b_frames, openings, caplog):
    check(b_frames)
    (video,) = (path for path, _ in HMDB51(b_frames).samples)
    row = (b_frames / "check.csv").read_text()
    (b_frames / "check.csv").write_text(row.replace(",90,", ",70,"))

    def begins_anew_after_70():
        clip, _ = Clips(HMDB51(b_frames), 71, train=False)[0]
        return clip[:, 70].equal(clip[:, 0])

    assert begins_anew_after_70()  # the file is as it was checked, so the list is believed
    os.utime(video, (1e9, 1e9))
    assert not begins_anew_after_70()
    (b_frames / "check.csv").write_text("mine\n")
    data = Clips(HMDB51(b_frames), 16, 2, train=False)
    assert "counted anew" in caplog.text
    assert openings_of(data, openings) == 2  # the packets prove no length; the decoding that counts gives the clip, too
    assert openings_of(data, openings) == 1


def test_workers_share_the_lengths_they_count(b_frames, openings):
    data = Clips(HMDB51(b_frames), 16, 2, train=False)
    list(DataLoader(data, 1, num_workers=1))
    assert openings_of(data, openings) == 2  # both to read it


@pytest.mark.parametrize("kind", ["b_frames", "made"])
def test_evaluation_decodes_no_frame_twice(kind, request, openings, monkeypatch):
    """Nine clips that overlap, of a video whose length only decoding tells, and of one whose packets tell it."""
    decoded, frames_of = [], reading.frames_of
    monkeypatch.setattr(
        reading, "frames_of", lambda packet: (decoded.append(frame.pts) or frame for frame in frames_of(packet))
    )
    root, frames, stride = request.getfixturevalue(kind), *{"b_frames": (16, 2), "made": (4, 1)}[kind]
    source = HMDB51(root) if kind == "b_frames" else SyntheticMotion(root)
    path = source.samples[0][0]
    length = probe(path).frames
    decoded.clear()
    data = Views(source, frames, stride, clips=9)
    assert openings_of(data, openings) == 2
    assert len(decoded) == length
    starts = np.linspace(0, length - (frames - 1) * stride - 1, 9).round().astype(int)
    for clip, start in zip((data[0][0] + 1) * 127.5, starts.tolist(), strict=True):
        np.testing.assert_allclose(clip.permute(1, 2, 3, 0), read_clip(path, start, frames, stride), atol=0.01)


def test_a_long_video_of_unknown_length_is_not_held_in_memory(b_frames, openings, monkeypatch):
    expected = Clips(HMDB51(b_frames), 16, 2, train=False)[0][0]
    monkeypatch.setattr(reading, "HELD", 89 * 48 * 32 * 3 // 2)  # bytes, one frame less than the video has
    data = Clips(HMDB51(b_frames), 16, 2, train=False)
    assert openings_of(data, openings) == 3  # two to count
    assert data[0][0].equal(expected)


@pytest.fixture(scope="module")
def with_flow(made):
    """The data set and the folder with its videos' flow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        result = extract_flow(made, workers=1)
    assert not result.failed
    return made, made.with_name(f"{made.name}-flow")


def test_flow_comes_with_the_clip(with_flow):
    root, folder = with_flow
    settings = {"frames": 3, "stride": 2, "train": False, "crop": 32}
    ((clip, flow), label) = Clips(SyntheticMotion(root), flow=folder, **settings)[5]
    plain, truth = Clips(SyntheticMotion(root), **settings)[5]
    assert (flow.shape, flow.dtype, label) == ((2, 3, 32, 32), torch.float32, truth)
    path = SyntheticMotion(root).samples[5][0]
    frames = torch.from_numpy(grey(read_clip(path)))
    # nine frames, but the last has no flow: clips of three, two apart, begin at 0..3; the middle one at 1
    expected = torch.stack([tvl1(frames[t], frames[t + 1]) for t in (1, 3, 5)], 1)[..., 4:36, 4:36] / 20
    np.testing.assert_allclose(flow, expected.clamp(-1, 1), atol=0.5 / 127 + 1e-6)
    pixels = torch.from_numpy(read_clip(path, 1, 3, 2)).permute(3, 0, 1, 2)[..., 4:36, 4:36]
    torch.testing.assert_close(clip, pixels * (2 / 255) - 1)
    assert plain.shape == clip.shape
    ((same, computed), _) = Clips(SyntheticMotion(root), flow="tvl1", **settings)[5]
    assert torch.equal(same, clip)
    np.testing.assert_allclose(computed, flow, atol=0.5 / 127 + 1e-6)


@pytest.mark.parametrize("given", [True, False])
def test_overlapping_views_share_their_flow(given, with_flow, monkeypatch):
    """Each is as by itself; no picture of flow is read twice, and none computed twice."""
    root, folder = with_flow
    source = SimpleNamespace(samples=SyntheticMotion(root).samples, root=root)
    path, length = source.samples[0][0], probe(source.samples[0][0]).frames
    taken, from_bytes = [], data_flow.from_bytes
    monkeypatch.setattr(data_flow, "from_bytes", lambda picture: taken.append(picture) or from_bytes(picture))
    monkeypatch.setattr(data_flow, "tvl1", lambda f1, f2: taken.extend(f1) or tvl1(f1, f2))
    _, flows = Views(source, 4, 1, clips=5, flow=folder if given else "tvl1")[0][0]
    assert len(taken) == length - 1
    folders = (folder, root) if given else (None, None)
    for flow, start in zip(flows, np.linspace(0, length - 5, 5).round().astype(int).tolist(), strict=True):
        alone = torch.from_numpy(flow_of_clip(path, start, 4, 1, *folders)).transpose(0, 1)
        torch.testing.assert_close(flow, (alone / 20).clamp(-1, 1), rtol=0, atol=1e-5)


def test_flow_is_cut_and_mirrored_with_the_clip(with_flow, monkeypatch):
    """Of frames and flow that tell the place: red and u are x, green and v are y."""
    root, folder = with_flow
    y, x = np.mgrid[:40, :40]
    ramp = np.stack([x * 6, y * 6, 0 * x], -1).astype(np.uint8)
    monkeypatch.setattr(clips, "choose_frames", lambda path, numbers, held: [ramp] * len(numbers))
    place = np.stack([x, y]).astype(np.float32) / 8  # pixels
    monkeypatch.setattr(clips, "flow_at", lambda path, numbers, *_: [place] * len(numbers))
    settings = {"train": True, "area": (0.2, 0.9), "crop": 24, "flip": True, "flow": folder}
    data = Clips(SimpleNamespace(samples=SyntheticMotion(root).samples, root=root), 3, **settings)
    mirrored = 0
    for epoch in range(30):
        data.set_epoch(epoch)
        (clip, flow), _ = data[epoch % len(data)]
        at = (clip[:2, 0] + 1) * 127.5 / 6  # where each pixel comes from
        side = at[0, 12, 23] - at[0, 12, 0], at[1, 23, 12] - at[1, 0, 12]
        mirrored += bool(side[0] < 0)
        grown = [float(abs(24 / (length * 24 / 23))) for length in side]
        expected = at / 8 / 20 * torch.tensor([grown[0] * float(side[0].sign()), grown[1]])[:, None, None]
        np.testing.assert_allclose(flow[:, 0], expected, atol=0.02)
    assert 5 < mirrored < 25


@pytest.mark.parametrize("size", [(20,), (90,), (31, 17), (60, 44)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_resize_equals_torchvision_s(dtype, size, rng):
    frames = torch.randint(0, 256, (2, 60, 44, 3), generator=rng).to(dtype).movedim(-1, 1)
    expected = torchvision.resize(frames, list(size), antialias=True)
    assert torch.equal(resize(frames, size), expected)
    assert torch.equal(resize(frames[0], size), expected[0])


def test_resized_flow_is_in_pixels_of_the_new_size():
    flow = torch.tensor([3.0, -2.0])[:, None, None].expand(2, 30, 40)
    resized = resize_flow(flow, (15, 60))
    torch.testing.assert_close(resized, torch.tensor([4.5, -1.0])[:, None, None].expand(2, 15, 60))


def test_short_videos_repeat_with_their_flow(with_flow):
    root, folder = with_flow
    (clip, flow), _ = Clips(SyntheticMotion(root), 12, train=False, flow=folder)[0]
    assert torch.equal(clip[:, 8:], clip[:, :4])  # of nine frames eight have flow
    assert torch.equal(flow[:, 8:], flow[:, :4])


def test_views_have_flow(with_flow):
    root, folder = with_flow
    (views, flows), _ = Views(SyntheticMotion(root), 2, clips=2, crops=3, crop=30, flow=folder)[1]
    assert (views.shape, flows.shape) == ((6, 3, 2, 30, 30), (6, 2, 2, 30, 30))
    (view, flow), _ = Clips(SyntheticMotion(root), 2, train=False, crop=30, flow=folder)[1]
    (only,), (motion,) = Views(SyntheticMotion(root), 2, clips=1, crop=30, flow=folder)[1][0]
    assert torch.equal(view, only)
    assert torch.equal(flow, motion)


def test_missing_flow_says_what_to_run(with_flow, tmp_path):
    root, _ = with_flow
    with pytest.raises(ValueError, match="repflow data extract-flow ROOT"):
        Clips(SyntheticMotion(root), 2, train=False, flow=tmp_path / "nowhere")
    data = Clips(SyntheticMotion(root), 2, train=False, flow=tmp_path)
    with pytest.raises(VideoError, match=r"\.avi\.mkv"):
        data[0]


@pytest.mark.parametrize("size", [None, 30])
def test_cached_frames_make_the_same_clips(made, tmp_path, size):
    """Clips for training and views, of long and short videos, to the bit."""
    data = undirected(made)
    options = {"resize": size, "crop": 24}
    pairs = [
        [kind(data, frames, 2, cache=cache, **options, **train) for cache in (None, tmp_path / "cache")]
        for kind, train in ((Clips, {"train": True}), (Views, {"clips": 2}))
        for frames in (3, 7)
    ]
    for plain, cached in pairs:
        for index in range(len(plain)):
            assert torch.equal(plain[index][0], cached[index][0])
    assert len(list((tmp_path / "cache").iterdir())) == len(data.samples)


def test_a_changed_video_is_decoded_again(made, tmp_path):
    first, second = (path for path, _ in SyntheticMotion(made).samples[:2])
    video = tmp_path / "video.avi"
    clips_of = []
    for path, moment in ((first, 1), (second, 2)):
        video.write_bytes(path.read_bytes())
        os.utime(video, ns=(moment, moment))
        data = Clips(SimpleNamespace(samples=[(video, 0)]), 9, train=False, cache=tmp_path / "cache")
        clips_of.append(data[0][0])
    expected = [torch.from_numpy(read_clip(path)).permute(3, 0, 1, 2) * (2 / 255) - 1 for path in (first, second)]
    for clip, pixels in zip(clips_of, expected, strict=True):
        torch.testing.assert_close(clip, pixels)


def test_a_video_that_fails_leaves_nothing_in_the_cache(made, tmp_path):
    whole = SyntheticMotion(made).samples[0][0].read_bytes()
    for name, content in (("cut.avi", whole[: len(whole) // 2]), ("gone.avi", None)):
        if content:
            (tmp_path / name).write_bytes(content)
        data = Clips(SimpleNamespace(samples=[(tmp_path / name, 0)]), 3, train=False, cache=tmp_path / "cache")
        with pytest.raises(VideoError, match=name):
            data[0]
    assert list(tmp_path.glob("cache/*")) == list(tmp_path.glob("cache/.*")) == []
