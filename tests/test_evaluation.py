"""What predictions are worth, their fusion, and that every video counts once."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from functools import partialmethod
from textwrap import dedent

import numpy as np
import pytest
import torch
from conftest import PATIENCE
from PIL import Image
from torch import nn

from repflow import official
from repflow.cli import main
from repflow.data import HMDB51, Clips, SyntheticMotion, Views
from repflow.evaluation import Predictions, confusion, evaluate, folds, fuse, measures, per_class, predict
from repflow.files import read_csv
from repflow.models import build_model
from repflow.training import Recipe, load_model, motion_accuracy, open_checkpoint, read_checkpoint, train
from repflow.video import probe, read_clip

CLASSES = ["a", "b", "c"]
NAN = [np.nan] * 3


def predictions(rows, labels, expected=None, classes=CLASSES, name="v"):
    names = [f"{name}{i}.avi" for i in range(len(rows))]
    return Predictions(names, np.array(labels), np.array(rows, np.float32), classes, expected or len(rows))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "set"
    SyntheticMotion.make(root, train=1, test=1, unused=0, size=32, frames=6)
    return root


def test_accuracies_by_hand():
    found = measures(predictions([[3, 2, 1], [1, 2, 3], [1, 2, 3], NAN, [2, 2, 1]], [0, 1, 2, 0, 1], expected=7))
    assert (found["evaluated"], found["expected"]) == (4, 7)
    assert found["top1"] == 50  # a tie is no hit
    assert found["top5"] == 100
    assert found["top1_low"] < 50 < found["top1_high"]


def test_top5_of_many_classes(rng):
    scores = torch.rand(200, 9, generator=rng)
    labels = torch.randint(9, (200,), generator=rng)
    found = measures(predictions(scores.numpy(), labels.numpy(), classes=[str(i) for i in range(9)]))
    among = (scores.topk(5).indices == labels[:, None]).any(1).float().mean()
    assert found["top5"] == pytest.approx(100 * among.item())


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(300):
        right = rng.random(150) < 0.7
        found = measures(predictions(np.where(right[:, None], [2, 1, 0], [1, 2, 0]), np.zeros(150, int)))
        covered += found["top1_low"] <= 70 <= found["top1_high"]
    assert 0.91 < covered / 300 < 0.985


def test_nothing_evaluated_is_no_accuracy():
    found = measures(predictions([NAN, NAN], [0, 1]))
    assert np.isnan(found["top1"])
    assert found["evaluated"] == 0


def test_classes_and_confusion():
    part = predictions([[3, 2, 1], [1, 3, 2], [1, 3, 2], [1, 2, 3], NAN], [0, 0, 0, 2, 1])
    np.testing.assert_array_equal(confusion(part), [[1, 2, 0], [0, 0, 0], [0, 0, 1]])
    rows = per_class(part)
    assert [row["top1"] for row in rows] == [pytest.approx(100 / 3), None, 100]
    assert (rows[0]["taken_for"], rows[0]["times"], rows[1]["videos"]) == ("b", 2, 0)


def test_fusion_is_the_weighted_mean():
    first, second = predictions([[1, 0, 0], NAN], [0, 1]), predictions([[0, 1, 0], [0, 1, 0]], [0, 1])
    fused = fuse([first, second], [3, 1])
    np.testing.assert_allclose(fused.probabilities[0], [0.75, 0.25, 0])
    assert fused.evaluated.tolist() == [True, False]
    with pytest.raises(ValueError, match="same videos"):
        fuse([first, predictions([[0, 1, 0]], [0])], [1, 1])
    with pytest.raises(ValueError, match="same videos, labels"):
        fuse([first, predictions([[0, 1, 0], [0, 1, 0]], [0, 2])], [1, 1])
    for weights in ([1], [1, 0], [1, np.nan]):
        with pytest.raises(ValueError, match="expected 2 numbers > 0"):
            fuse([first, second], weights)


def test_the_mean_over_folds():
    parts = [predictions([[3, 2, 1]] * 2, [0, t], expected=3, name=name) for name, t in [("u", 0), ("v", 1), ("w", 1)]]
    assert folds(parts) == {"top1": pytest.approx(200 / 3), "top5": 100, "evaluated": 6, "expected": 9, "folds": 3}
    with pytest.raises(ValueError, match=r"the same 2 in number 1 and 3; give each fold once"):
        folds([*parts[:2], parts[0]])


def test_other_classes_are_shown_beside_each_other():
    first = predictions([[3, 2, 1]], [0])
    for classes, shown in ((["a", "c", "b"], "3, from label 1 on ['b', 'c'] and 3, from label 1 on ['c', 'b']"),
                           (["a", "b", "c", "d"], "3, from label 3 on [] and 4, from label 3 on ['d']")):  # fmt: skip
        other = predictions([[3, 2, 1, 0][: len(classes)]], [0], classes=classes, name="w")
        for join in (folds, lambda parts: fuse(parts, [1, 1])):
            with pytest.raises(ValueError, match=re.escape(shown)):
                join([first, other])


def test_a_tie_counts_as_wrong_everywhere():
    same = predictions([[1, 1, 1]] * 3, [0, 1, 2])
    assert measures(same)["top1"] == 0
    assert [row["top1"] for row in per_class(same)] == [0, 0, 0]
    assert confusion(same).diagonal().sum() == 0
    assert confusion(same).sum() == 3
    scores = np.array([[1, 1, 1], [2, 1, 0]])
    assert motion_accuracy(scores, [0, 0], ["down", "left", "up"])["top1"] == 50
    mixed = predictions(np.random.default_rng(0).integers(3, size=(200, 3)), [0, 1] * 100)  # about 67 ties
    by_class = [row["top1"] * row["videos"] for row in per_class(mixed) if row["videos"]]
    assert sum(by_class) / 200 == pytest.approx(measures(mixed)["top1"])


def test_saved_and_loaded(tmp_path):
    part = predictions([[3, 2, 1], NAN], [0, 2], expected=4, classes=["a", "ü b", "c"])
    part.save(tmp_path / "p.npz")
    again = Predictions.load(tmp_path / "p.npz")
    np.testing.assert_array_equal(again.probabilities, part.probabilities)
    assert (again.videos, again.classes, again.expected) == (part.videos, part.classes, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04damaged"])
def test_other_files_are_no_predictions(tmp_path, content):
    (tmp_path / "p.npz").write_bytes(content)
    with pytest.raises(OSError, match="expected predictions"):
        Predictions.load(tmp_path / "p.npz")


def test_a_pickle_in_a_predictions_file_is_not_read(tmp_path):
    np.savez(tmp_path / "p.npz", videos=np.array([{}], object))
    with pytest.raises(OSError, match="expected predictions"):
        Predictions.load(tmp_path / "p.npz")


def test_predictions_of_a_data_set(made):
    source = SyntheticMotion(made, "test")
    model = build_model("repflow_2d", 12, backbone="tiny_2d", iterations=2).eval()
    part = evaluate(model, Views(source, 4, clips=2), source, batch=6)
    with torch.no_grad():
        expected = torch.stack([model(views).softmax(-1).mean(0) for views, _ in Views(source, 4, clips=2)])
    np.testing.assert_allclose(part.probabilities, expected, rtol=1e-4, atol=1e-6)
    single = evaluate(model, Clips(source, 4, train=False), source)
    np.testing.assert_allclose(single.probabilities.sum(1), 1, rtol=1e-5)
    assert part.videos == [path.relative_to(made).as_posix() for path, _ in source.samples]
    assert part.labels.tolist() == [label for _, label in source.samples]
    assert part.expected == source.expected == 12


def test_a_model_takes_what_it_is_made_for(made):
    source = SyntheticMotion(made, "test")
    with_flow = Clips(source, 3, train=False, flow="tvl1")
    for name in ("rgb_2d", "flow_2d", "two_stream_2d"):
        model = build_model(name, 12, backbone="tiny_2d").eval()
        assert predict(model, with_flow).shape == (12, 12)
    with pytest.raises(ValueError, match="needs flow beside the clips"):
        predict(model, Clips(source, 3, train=False))


def test_weights_that_give_nan_are_no_prediction(made):
    source = SyntheticMotion(made, "test")
    model = build_model("rgb_2d", 12, backbone="tiny_2d")
    torch.nn.init.constant_(model.classify.bias, torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        predict(model, Clips(source, 3, train=False))


def test_a_model_of_other_classes_is_refused(made):
    source = SyntheticMotion(made, "test")
    with pytest.raises(ValueError, match="tells 5 classes, the data set has 12"):
        evaluate(build_model("rgb_2d", 5, backbone="tiny_2d"), Clips(source, 3, train=False), source)


def test_two_processes_count_every_video_once(made, tmp_path):
    """Eleven videos, one of them unreadable, which two processes cannot share evenly."""
    script = tmp_path / "evaluate.py"
    script.write_text(
        dedent(
            """
            import sys
            from pathlib import Path
            import numpy as np, torch, torch.distributed as dist
            from types import SimpleNamespace
            from repflow.data import Clips, SyntheticMotion
            from repflow.evaluation import predict
            from repflow.models import build_model

            root, out, rank, world = *sys.argv[1:3], *map(int, sys.argv[3:])
            if world > 1:
                dist.init_process_group("gloo", f"file://{out}.store", rank=rank, world_size=world)
            samples = SyntheticMotion(root, "test").samples[:11]
            samples[4] = (Path("nowhere.avi"), 0)
            torch.manual_seed(0)
            model = build_model("rgb_2d", 12, backbone="tiny_2d").eval()
            scores = predict(model, Clips(SimpleNamespace(samples=samples), 4, train=False), batch=2)
            np.save(f"{out}_{world}_{rank}.npy", scores)
            """
        )
    )
    command = [sys.executable, script, made, tmp_path / "scores"]
    jobs = [subprocess.Popen([*map(str, command), str(rank), str(world)]) for rank, world in ((0, 1), (0, 2), (1, 2))]
    assert [job.wait(PATIENCE) for job in jobs] == [0, 0, 0]
    alone, first, second = (np.load(tmp_path / f"scores_{name}.npy") for name in ("1_0", "2_0", "2_1"))
    np.testing.assert_allclose(first, alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(first, second)
    assert np.isnan(alone).all(1).tolist() == [i == 4 for i in range(11)]


FAILS = """
import os, sys
from types import SimpleNamespace
import torch
from repflow.data import Clips, SyntheticMotion
from repflow.evaluation import predict
from repflow.processes import process_group
from repflow.models import build_model

samples = SyntheticMotion(sys.argv[1], "test").samples
model = build_model("rgb_2d", 12, backbone="tiny_2d")
with process_group() as first:
    if not first:
        torch.nn.init.constant_(model.classify.bias, torch.nan)
    try:
        predict(model, Clips(SimpleNamespace(samples=samples), 3, train=False))
    except ValueError as error:
        print(error)
    torch.distributed.barrier()  # a process that raised is still there, as it would be in a notebook
"""


def by_slurm(command, tasks=2):
    """The command as so many tasks of srun: their (stdout, exit code)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"SLURM_NTASKS": str(tasks), "SLURM_JOB_ID": "17", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": str(port)}
    jobs = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=os.environ | told | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(tasks)
    ]
    return [(job.communicate(timeout=500)[0], job.returncode) for job in jobs]


def test_every_process_learns_of_another_s_failure(made, tmp_path):
    (tmp_path / "fails.py").write_text(FAILS)
    begin = time.monotonic()
    (first, _), (second, _) = by_slurm([tmp_path / "fails.py", made])
    assert "process 1 of 2 failed: ValueError: the model's scores for" in first
    assert second.startswith("the model's scores for")
    assert time.monotonic() - begin < 500  # and not after the group's half an hour


def test_tasks_of_slurm_share_the_videos_and_one_writes(made, trained, tmp_path):
    checkpoint, out, ours = trained("run"), tmp_path / "out", tmp_path / "ours.csv"
    command = ["-m", "repflow", "evaluate", "--checkpoint", checkpoint, "--data", "synthetic", made, "--clips", "1"]
    told = by_slurm([*command, "--out", out, "--ours", ours])
    assert [code for _, code in told] == [0, 0]
    assert "evaluated 12 of 12 videos" in told[0][0]
    assert told[1][0] == ""
    assert len(read_csv(ours)) == 1
    source = SyntheticMotion(made, "test")
    expected = evaluate(load_model(checkpoint), Views(source, 4, clips=1), source)
    part = Predictions.load(out / "predictions.npz")
    np.testing.assert_allclose(part.probabilities, expected.probabilities, rtol=1e-5)


def test_a_released_checkpoint_is_evaluated(shared, tmp_path, capsys):
    root = tmp_path / "set"
    for name, video in (("brush_hair", "test.avi"), ("wave", "arm_wrestling.mp4")):
        (root / name).mkdir(parents=True)
        (root / name / f"a{video[-4:]}").symlink_to((root / name / f"copy{video[-4:]}").name)
        (root / name / f"copy{video[-4:]}").write_bytes((shared / "videos" / video).read_bytes())
        (root / f"{name}_test_split1.txt").write_text("a.avi 2\ngone.avi 2\n")
    model = official.HMDBFlowOfFlow(2)
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "official.pt")
    (tmp_path / "classes").write_text("brush_hair\nwave\n")
    arguments = ["--data", "hmdb51", str(root), "--clips", "1", "--classes", str(tmp_path / "classes")]
    arguments += ["--out", str(tmp_path / "out")]
    assert main(["evaluate", "--checkpoint", str(tmp_path / "official.pt"), *arguments]) == 0
    assert "evaluated 2 of 4 videos" in capsys.readouterr().out
    part = Predictions.load(tmp_path / "out" / "predictions.npz")
    source = HMDB51(root, subset="test", missing_ok=True)
    views = Views(source, clips=1, frames=16, stride=2, crop=112, resize=240, halved=True, inverted=True)
    with torch.no_grad():
        expected = torch.stack([model.eval()(clips)[0].softmax(-1) for clips, _ in views])
    np.testing.assert_allclose(part.probabilities, expected, rtol=1e-3, atol=1e-5)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["evaluated"], metrics["expected"]) == (2, 4)
    assert [row["class"] for row in read_csv(tmp_path / "out" / "classes.csv")] == ["brush_hair", "wave"]

    assert main(["convert", str(tmp_path / "official.pt"), str(tmp_path / "ours")]) == 0
    again = ["evaluate", "--checkpoint", str(tmp_path / "ours"), *arguments[:-1], str(tmp_path / "again")]
    assert main(again) == 0
    converted = Predictions.load(tmp_path / "again" / "predictions.npz")
    np.testing.assert_array_equal(converted.probabilities, part.probabilities)

    saved = [str(tmp_path / name / "predictions.npz") for name in ("out", "again")]
    capsys.readouterr()
    assert main(["evaluate", "--predictions", *saved, "--weights", "1", "2"]) == 0
    assert "evaluated 2 of 4 videos\n" in capsys.readouterr().out


def test_a_run_s_best_checkpoint_is_evaluated_as_it_was_trained(tmp_path, capsys):
    root, run = str(tmp_path / "set"), tmp_path / "run"
    SyntheticMotion.make(root, train=2, test=1, unused=0, size=32, frames=6)
    settings = ["backbone=tiny_2d", "steps=2", "batch=4", "frames=5", "crop=24", "iterations=2"]
    train = ["train", "--data", "synthetic", root, "--model", "repflow_2d", "--out", str(run), "--set", *settings]
    assert main(train) == 0
    assert "12 for training, 12 for validation" in capsys.readouterr().out
    assert main(train) == 0  # nothing is left to do
    evaluation = ["evaluate", "--checkpoint", str(run / "best.pt"), "--data", "synthetic", root, "--clips", "2"]
    assert main([*evaluation, "--out", str(tmp_path / "out")]) == 0
    part = Predictions.load(tmp_path / "out" / "predictions.npz")
    source = SyntheticMotion(root, "test")
    expected = evaluate(load_model(run / "best.pt"), Views(source, 5, clips=2, crop=24), source)
    np.testing.assert_allclose(part.probabilities, expected.probabilities, rtol=1e-5)
    assert read_csv(run / "metrics.csv")[-1]["val_top1"] != ""

    ours = tmp_path / "ours.csv"
    assert main([*evaluation, "--ours", str(ours)]) == 0
    (row,) = read_csv(ours)
    there = {"system": "repflow_2d", "backbone": "tiny_2d", "data_set": "synthetic_motion", "fold": "", "clips": "2"}
    assert row | there | {"evaluated": "12", "expected": "12"} == row
    spent = sum(float(line["seconds"]) * (1 if line["val_loss"] else 2) for line in read_csv(run / "metrics.csv"))
    assert spent < float(row["seconds"]) < spent + 60
    newest = next((run / "checkpoints").glob("*.pt"))
    assert main([*evaluation, "--checkpoint", str(newest), "--ours", str(ours)]) == 0
    assert len(read_csv(ours)) == 2
    shutil.copy(newest, tmp_path / "alone.pt")
    assert main([*evaluation, "--checkpoint", str(tmp_path / "alone.pt"), "--ours", str(ours)]) == 1
    assert "alone.pt: expected its run's metrics.csv" in capsys.readouterr().err
    assert len(read_csv(ours)) == 2
    assert main(["compare", "--ours", str(ours)]) == 0
    assert f"{100 * np.mean(part.probabilities.argmax(1) == part.labels):.1f}" in capsys.readouterr().out


def test_the_mean_over_folds_is_written(tmp_path, capsys):
    files = [str(tmp_path / f"{name}.npz") for name in "uv"]
    for file, truth in zip(files, (0, 1), strict=True):
        predictions([[3, 2, 1]], [truth], name=file[-5]).save(file)
    out = tmp_path / "out"
    assert main(["evaluate", "--predictions", *files, "--out", str(out)]) == 0
    assert "evaluated 2 of 2 videos, mean of 2 folds" in capsys.readouterr().out
    found = json.loads((out / "metrics.json").read_text())
    assert (found["top1"], found["folds"]) == (50, 2)
    assert main(["evaluate", "--predictions", files[0], files[0]]) == 1
    assert "give each fold once" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory):
    """A function that trains a step on some classes with clips cut in some way, and gives the checkpoint."""

    def trained(name, classes=None, **cut):
        source = SyntheticMotion(made, classes=classes)
        clips = Clips(source, 4, train=True, **cut)
        recipe = Recipe(steps=1, batch=2, rate=0.1)
        folder = tmp_path_factory.mktemp("runs") / name
        train("rgb_2d", clips, len(source.classes), recipe, folder=folder, backbone="tiny_2d")
        return folder / "checkpoints" / "step-000000001.pt"

    return trained


def test_clips_are_cut_and_fed_as_in_training(made, trained, tmp_path, capsys):
    """Whatever way the recipe would have gone: the clips that were trained on decide."""
    cut = {"stride": 2, "resize": 44, "halved": True, "crop": 20, "inverted": True}
    checkpoint = trained("run", **cut)
    command = ["evaluate", "--checkpoint", str(checkpoint), "--data", "synthetic", str(made), "--clips", "1"]
    source = SyntheticMotion(made, "test")
    for asked, changed in (([], {}), (["--crop", "16"], {"crop": 16})):
        assert main([*command, *asked, "--out", str(tmp_path / "out")]) == 0
        expected = evaluate(load_model(checkpoint), Views(source, 4, clips=1, **cut | changed), source)
        part = Predictions.load(tmp_path / "out" / "predictions.npz")
        np.testing.assert_allclose(part.probabilities, expected.probabilities, rtol=1e-5)
    assert main([*command, "--feed", "training"]) == 1
    assert "is fed as in its training; leave out feed 'training'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--preset", "2019"])
    assert "unrecognized arguments: --preset" in capsys.readouterr().err


def test_a_checkpoint_knows_its_classes(made, trained, tmp_path, capsys):
    checkpoint = trained("run", classes=["left", "up"])
    assert open_checkpoint(checkpoint).classes == ["left", "up"]
    command = ["evaluate", "--checkpoint", str(checkpoint), "--data", "synthetic", str(made), "--clips", "1"]
    assert main(command) == 0
    assert "evaluated 2 of 2 videos" in capsys.readouterr().out
    (tmp_path / "others").write_text("left\nright\n")
    assert main([*command, "--classes", str(tmp_path / "others")]) == 1
    assert "2, from label 1 on ['up'] and 2, from label 1 on ['right']" in capsys.readouterr().err

    state = read_checkpoint(checkpoint)
    state["config"]["about"]["classes"] = ["up", "left"]
    torch.save(state, tmp_path / "turned.pt")
    (tmp_path / "these").write_text("left\nup\n")
    turned = [*command[:2], str(tmp_path / "turned.pt"), *command[3:], "--classes", str(tmp_path / "these")]
    assert main(turned) == 1
    assert "2, from label 0 on ['up', 'left'] and 2, from label 0 on ['left', 'up']" in capsys.readouterr().err

    assert main([*turned[:-2], "--out", str(tmp_path / "out")]) == 0  # the checkpoint's classes, in its order
    part = Predictions.load(tmp_path / "out" / "predictions.npz")
    assert part.classes == ["up", "left"]
    assert [part.classes[label] for label in part.labels] == [video.partition("/")[0] for video in part.videos]

    del state["config"]["about"]["classes"]
    torch.save(state, tmp_path / "turned.pt")
    assert main(turned) == 0
    capsys.readouterr()
    assert main(turned[:-2]) == 2
    assert "turned.pt, one a line in the order of its scores" in capsys.readouterr().err


def test_an_answer_of_the_released_network_gets_the_name_of_its_class(tmp_path, capsys, monkeypatch):
    """In the release's own order, in which a file with 34 layers is, and in any other that is told."""
    monkeypatch.setattr(official.models, "FILTERS", (4, 4, 4, 4))
    root, alphabetical = tmp_path / "set", sorted(official.HMDB_CLASSES)
    SyntheticMotion.make(tmp_path / "made", train=1, test=0, unused=0, size=24, frames=3)
    for name in alphabetical:
        (root / name).mkdir(parents=True)
        (root / f"{name}_test_split1.txt").write_text("a.avi 2\n")
    for name in ("wave", "pour"):
        shutil.copy(next((tmp_path / "made" / "up").glob("*.avi")), root / name / "a.avi")
    orders = {"alphabetical": alphabetical, "release": official.HMDB_CLASSES}
    for name, order in orders.items():
        (tmp_path / name).write_text("\n".join(order))

    def answers(layers, order, *told):
        """The exit code for a network that always says "wave" in this order, and the classes that it is said to say."""
        model = official.HMDBFlowOfFlow(layers=layers)
        torch.nn.init.zeros_(model.fc.weight)
        model.fc.bias.data = torch.eye(51)[order.index("wave")]
        torch.save(model.state_dict(), tmp_path / "weights.pt")
        command = ["evaluate", "--checkpoint", str(tmp_path / "weights.pt"), "--data", "hmdb51", str(root)]
        code = main([*command, "--clips", "1", "--out", str(tmp_path / "out"), *told])
        if code:
            return code, None
        part = Predictions.load(tmp_path / "out" / "predictions.npz")
        assert measures(part)["top1"] == 50 * (part.classes == order)
        return code, {part.classes[label] for label in part.probabilities.argmax(1)[part.evaluated]}

    release = ("--classes", str(tmp_path / "release"))
    assert answers(34, official.HMDB_CLASSES) == (0, {"wave"})
    assert answers(34, official.HMDB_CLASSES, *release) == (0, {"wave"})
    assert answers(50, official.HMDB_CLASSES, *release) == (0, {"wave"})
    assert answers(50, alphabetical, "--classes", str(tmp_path / "alphabetical")) == (0, {"wave"})
    mistaken = official.HMDB_CLASSES[alphabetical.index("wave")]
    assert answers(50, alphabetical, *release) == (0, {mistaken})
    capsys.readouterr()
    assert answers(34, official.HMDB_CLASSES, "--classes", str(tmp_path / "alphabetical")) == (1, None)
    assert "from label 0 on ['pour', 'stand'" in capsys.readouterr().err
    assert answers(50, alphabetical) == (2, None)
    assert "--classes FILE: expected the classes of" in capsys.readouterr().err


def test_training_and_validation_have_the_same_classes(made):
    def clips(classes):
        return Clips(SyntheticMotion(made, "test", classes), 3, train=False)

    with pytest.raises(ValueError, match=re.escape("on ['up'] and 2, from label 1 on ['right']")):
        train("rgb_2d", clips(["left", "up"]), 2, Recipe(steps=1, batch=2), validation=clips(["left", "right"]))
    with pytest.raises(ValueError, match="num_classes: expected 2, as the clips' data set has, got 3"):
        train("rgb_2d", clips(["left", "up"]), 3, Recipe(steps=1, batch=2))


@pytest.mark.parametrize("batch", [1, 4, 7])
def test_a_batch_bounds_the_clips_at_once(batch, made):
    source = SyntheticMotion(made, "test")
    model = build_model("rgb_2d", 12, backbone="tiny_2d").eval()
    views = Views(source, 3, clips=2, crops=3, crop=20)
    expected, sizes = predict(model, views, 36), []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    np.testing.assert_allclose(predict(model, views, batch), expected, rtol=1e-4, atol=1e-6)
    assert max(sizes) <= batch
    assert sum(sizes) == 12 * 6


def test_clips_of_several_sizes_are_named(tmp_path, capsys):
    root = tmp_path / "set"
    SyntheticMotion.make(root, train=2, test=1, unused=0, size=32, frames=4)
    SyntheticMotion.make(tmp_path / "wide", train=2, test=1, unused=0, size=40, frames=4)
    for video in (root / "up").glob("*.avi"):
        shutil.copy(tmp_path / "wide" / "up" / video.name, video)
    told = r"up_\w+\.avi' 40×40 \(height × width\); take a crop"
    source = SyntheticMotion(root)
    with pytest.raises(ValueError, match=r"gives 32×32 and .*" + told + "|gives 40×40"):
        train("rgb_2d", Clips(source, 3, train=True), 12, Recipe(steps=1, batch=24), backbone="tiny_2d")
    model = build_model("rgb_2d", 12, backbone="tiny_2d")
    with pytest.raises(ValueError, match=r"gives 32×32 and .*" + told):
        predict(model, Clips(source, 3, train=False), batch=24)
    assert predict(model, Clips(source, 3, train=False), batch=1).shape == (24, 12)


def test_a_network_is_not_tested_on_what_it_was_trained_on(tmp_path, capsys, monkeypatch):
    # The preset compiles; here to a graph of PyTorch's operators alone, which takes no C++ compiler half a minute.
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    root, run = str(tmp_path / "set"), tmp_path / "run"
    SyntheticMotion.make(root, train=2, test=1, unused=0, size=32, frames=6)  # has HMDB51's layout
    settings = ["backbone=tiny_2d", "steps=1", "batch=4", "frames=5", "crop=24", "resize=24", "validation=0"]
    train = ["train", "--data", "hmdb51", root, "--model", "rgb_2d", "--out", str(run), "--set", *settings]
    assert main(train) == 0
    for split in (tmp_path / "set").glob("*_test_split1.txt"):
        shutil.copy(split, split.with_name(split.name.replace("split1", "split2")))
    checkpoint = str(run / "checkpoints" / "step-000000001.pt")
    evaluation = ["evaluate", "--checkpoint", checkpoint, "--data", "hmdb51", root, "--clips", "1"]
    capsys.readouterr()
    assert main([*evaluation, "--fold", "2"]) == 2
    assert "was trained on fold 1" in capsys.readouterr().err


def test_only_a_run_of_this_package_gets_a_row(made, tmp_path, capsys):
    torch.save(official.HMDBFlowOfFlow(12).state_dict(), tmp_path / "official.pt")
    ours = ["--ours", str(tmp_path / "ours.csv")]
    command = ["evaluate", "--checkpoint", str(tmp_path / "official.pt"), "--data", "synthetic", str(made)]
    assert main([*command, *ours]) == 2
    assert "expected a checkpoint of `repflow train`" in capsys.readouterr().err
    assert main(["evaluate", "--predictions", "a.npz", *ours]) == 2
    assert "--ours" in capsys.readouterr().err
    assert not (tmp_path / "ours.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --checkpoint or --predictions"),
        (["--checkpoint", "a.pt"], "--data SET ROOT"),
        (["--checkpoint", "a.pt", "--data", "ucf102", "."], "--data ucf102: expected one of hmdb51"),
        (["--predictions", "no.npz"], "no.npz"),
    ],
)
def test_wrong_usage_is_one_line(arguments, message, capsys):
    assert main(["evaluate", *arguments]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_text_is_no_checkpoint(tmp_path, capsys):
    (tmp_path / "a.pt").write_text("no weights")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "wave_test_split1.txt").write_text("a.avi 2\n")
    code = main(["evaluate", "--checkpoint", str(tmp_path / "a.pt"), "--data", "hmdb51", str(tmp_path / "set")])
    assert code == 1
    assert "a.pt" in capsys.readouterr().err


def test_the_flow_inside_a_checkpoint_as_a_picture(made, tmp_path, capsys):
    settings = ["backbone=tiny_2d", "steps=1", "batch=4", "frames=5", "iterations=2", "validation=0"]
    run = str(tmp_path / "run")
    assert (
        main(
            ["train", "--data", "synthetic", str(made), "--model", "flow_of_flow_2d", "--out", run, "--set", *settings]
        )
        == 0
    )
    video = next((made / "right").glob("*.avi"))
    out = tmp_path / "learned.gif"
    command = ["flow", str(video), "--out", str(out), "--checkpoint", f"{run}/checkpoints/step-000000001.pt"]
    assert main([*command, "--channels", "1", "7", "--layer", "0"]) == 0
    with Image.open(out) as gif:
        assert (gif.n_frames, gif.size) == (4, (3 * 32, 32))  # five frames have four flows
        first = np.asarray(gif.convert("RGB"))
    difference = np.abs(first[:, :32].astype(int) - read_clip(video, 0, 1)[0]).mean()
    assert difference < 12  # a GIF has few colours
    capsys.readouterr()
    for wrong, message in (
        (["--channels", "8"], "--channels 8: this flow has channels 0 to 7"),
        (["--layer", "2"], "--layer 2: the model has 2 flows, 0 to 1"),
        (["--out", str(tmp_path / "a.npz")], "ends in .gif or .mp4"),
    ):
        assert main([*command, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_the_flow_inside_a_released_network(tmp_path, made):
    torch.save(official.HMDBFlowOfFlow(3).state_dict(), tmp_path / "official.pt")
    SyntheticMotion.make(tmp_path / "set", train=1, test=0, unused=0, size=32, frames=16)
    video = next((tmp_path / "set" / "up").glob("*.avi"))
    out = tmp_path / "learned.mp4"
    assert main(["flow", str(video), "--out", str(out), "--checkpoint", str(tmp_path / "official.pt")]) == 0
    assert probe(out)[:2] == (4 * 32, 32)
