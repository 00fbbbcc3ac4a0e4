"""Runs on disk: killed at any moment, in several processes, with faults; each ends as one that nothing happened to.

Runs to be killed are forked from a server process that has imported everything and computed nothing: importing takes
far longer than such a run, and a process that has used its thread pools must not fork one that does.
"""

import csv
import errno
import json
import logging
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from conftest import PATIENCE

from repflow.data import SyntheticMotion
from repflow.models import build_model
from repflow.training import Recipe, TrainingError, load_model, read_checkpoint, split, train
from repflow.training import folder as run_folder
from repflow.training.checkpoint import body_weights

TIMED = "seconds", "waiting", "peak_mib"
MODEL = {"backbone": "tiny_2d", "iterations": 2, "bottleneck": 2}
RECIPE = {"steps": 30, "batch": 8, "frames": 4, "dropout": 0.3, "validate_every": 10, "save_every": 4, "log_every": 3}
NEWER = "freeze", "freeze_norms", "mix", "jitter", "augment"  # settings that older runs did not have


def go(root, folder, name="repflow_2d", devices=1, init_from=None, **changes):
    recipe = Recipe(**RECIPE | changes)
    training, validation = split(SyntheticMotion(root), 0.25, recipe.seed)
    clips = recipe.clips(training, train=True), recipe.clips(validation, train=False)
    options = {"folder": folder, "validation": clips[1], "devices": devices, "init_from": init_from}
    return train(name, clips[0], 12, recipe, **options, **MODEL)


def die_at_sync(number):
    """From now on this process dies as it flushes a file for the `number`-th time; a new file is half written then."""
    calls, sync = [], os.fsync

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == number:
            if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".unfinished"):
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    run_folder.os.fsync = fsync


def child(root, folder, die_at=0, rank=None, port=0, changes=None):
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of workers; it would be this process's own, forkserver
    if die_at:
        die_at_sync(die_at)
    if rank is not None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    go(root, folder, **changes or {})


@pytest.fixture(scope="module")
def start():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["repflow.training", "repflow.solver.cpu", "pytest"])
    children = []

    def start(*arguments, **options):
        children.append(context.Process(target=child, args=arguments, kwargs=options))
        children[-1].start()
        return children[-1]

    yield start
    for process in children:
        process.kill()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "small"
    SyntheticMotion.make(root, train=4, test=0, unused=0, size=32, frames=6)
    return root


@pytest.fixture(scope="module")
def whole(root, start, tmp_path_factory):
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    process = start(root, folder)
    process.join(120)
    assert process.exitcode == 0
    return folder


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def checkpoints(folder):
    return sorted(file.name for file in (folder / "checkpoints").iterdir())


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_run(folder, whole):
    for name in (f"checkpoints/{checkpoints(whole)[-1]}", "best.pt"):
        ours, theirs = read_checkpoint(folder / name), read_checkpoint(whole / name)
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"config"}:
            assert same(ours[key], theirs[key]), f"{name}: {key}"
    untimed = [[{k: v for k, v in row.items() if k not in TIMED} for row in rows(f)] for f in (folder, whole)]
    assert untimed[0] == untimed[1]
    assert checkpoints(folder) == checkpoints(whole)


def wait_for_lines(process, folder, count):
    """Return once a run has written so many lines of metrics, or has ended."""
    metrics, deadline = folder / "metrics.csv", time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.is_alive():
        if metrics.exists() and metrics.read_text().count("\n") > count:
            break
        time.sleep(0.001)


def kill_after(process, folder, count, delay):
    """Kill a run once it has written so many lines of metrics, and a little later."""
    wait_for_lines(process, folder, count)
    process.join(delay)
    process.kill()
    process.join()


def test_a_whole_run_is_recorded(whole):
    steps = [(int(row["step"]), bool(row["val_loss"])) for row in rows(whole)]
    assert steps == sorted([(s, False) for s in range(3, 31, 3)] + [(s, True) for s in (10, 20, 30)])
    assert checkpoints(whole) == ["step-000000028.pt", "step-000000030.pt"]
    state = read_checkpoint(whole / "checkpoints" / "step-000000030.pt")
    means = state["losses"].unflatten(0, (-1, 3)).mean(1)
    logged = [row for row in rows(whole) if row["loss"]]
    torch.testing.assert_close(torch.tensor([float(row["loss"]) for row in logged]).double(), means)
    assert [int(row["epoch"]) for row in logged] == [(int(row["step"]) - 1) // 4 for row in logged]  # 36 clips
    assert all(float(row["seconds"]) > 0 and 0 <= float(row["waiting"]) <= 1 for row in logged)
    assert all(50 < int(row["peak_mib"]) < 50_000 for row in logged)
    validated = [row for row in rows(whole) if row["val_loss"]]
    best = min(validated, key=lambda row: (-float(row["val_top1"]), float(row["val_loss"])))
    assert read_checkpoint(whole / "best.pt")["step"] == int(best["step"])
    assert "step 30: validation loss" in (whole / "log.txt").read_text()


def test_killed_runs_end_as_the_whole_one(root, whole, start, tmp_path):
    """Once at a random moment, once in a checkpoint's write; with another number of workers each time."""
    folder = tmp_path / "run"
    dice = random.Random(0)
    process = start(root, folder, changes={"workers": 2})
    kill_after(process, folder, dice.randint(3, 7), dice.random() / 20)
    assert process.exitcode == -signal.SIGKILL
    process = start(root, folder, die_at=dice.randint(4, 9))
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    process = start(root, folder, changes={"workers": 1})
    process.join(120)
    assert process.exitcode == 0
    assert_same_run(folder, whole)


@pytest.mark.slow
def test_a_run_that_is_killed_ten_times(root, whole, start, tmp_path):
    folder = tmp_path / "run"
    dice = random.Random(1)
    for i in range(10):  # of them every second one as a file is written, begun or cut off
        process = start(root, folder, die_at=i % 2 * dice.randint(1, 6), changes={"workers": i % 3})
        kill_after(process, folder, i + 1, 120 if i % 2 else dice.random() / 20)
        assert process.exitcode == -signal.SIGKILL
    process = start(root, folder)
    process.join(120)
    assert process.exitcode == 0
    assert_same_run(folder, whole)


@pytest.mark.parametrize("number", range(1, 8))
def test_no_moment_of_a_write_leaves_an_unreadable_checkpoint(number, root, whole, tmp_path, monkeypatch):
    """A write that ends at each of its flushes in turn: what is there can be read, and no row is ahead or behind."""

    class PowerCut(BaseException):
        pass

    calls, sync = [], os.fsync

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == number:
            raise PowerCut
        sync(descriptor)

    state = read_checkpoint(whole / "checkpoints" / checkpoints(whole)[-1])
    folder = run_folder.RunFolder(tmp_path / "run", {"any": 1})
    folder.save(state | {"step": 1})
    monkeypatch.setattr(run_folder.os, "fsync", fsync)
    try:
        for step in (2, 3, 4):
            folder.save(state | {"step": step})
    except PowerCut:
        pass
    monkeypatch.undo()
    files = sorted((tmp_path / "run" / "checkpoints").glob("step-*.pt"))
    assert [read_checkpoint(file)["step"] for file in files] in ([1], [1, 2], [1, 2, 3], [2, 3], [2, 3, 4], [3, 4])
    assert run_folder.RunFolder(tmp_path / "run", {"any": 1}).newest()["step"] == int(files[-1].stem[5:])


def test_two_processes_equal_one(root, start, tmp_path):
    """Where batch norms do not see the batch; also one process that cuts its batches in two."""
    changes = {"steps": 8, "dropout": 0.0, "freeze": 1, "freeze_norms": True, "optimizer": "sgd", "rate": 0.1,
               "validate_every": 4}  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    one, two, parts = (tmp_path / name for name in ("one", "two", "parts"))
    runs = [start(root, one, changes=changes), start(root, parts, changes=changes | {"accumulate": 2})]
    for rank in (0, 1):
        runs.append(start(root, two, rank=rank, port=port, changes=changes | {"devices": 2}))
    for run in runs:
        run.join(180)
    assert [run.exitcode for run in runs] == [0] * 4
    expected = read_checkpoint(one / "checkpoints" / "step-000000008.pt")
    begun = build_model("repflow_2d", 12, **MODEL).state_dict()
    assert not torch.allclose(expected["model"]["classify.weight"], begun["classify.weight"], atol=1e-3)
    for other in (two, parts):
        state = read_checkpoint(other / "checkpoints" / "step-000000008.pt")
        for key, value in expected["model"].items():
            torch.testing.assert_close(state["model"][key], value, rtol=0, atol=1e-6, msg=f"{other.name}: {key}")
        assert [row["val_top1"] for row in rows(other)] == [row["val_top1"] for row in rows(one)]
        for ours, theirs in zip(rows(other), rows(one), strict=True):
            assert float(ours["loss"] or ours["val_loss"]) == pytest.approx(
                float(theirs["loss"] or theirs["val_loss"]), abs=1e-5
            )


@pytest.fixture
def begun(root, tmp_path, monkeypatch):
    """A function that runs to step 12 of 30, is interrupted there, and gives the folder."""

    def begin(**changes):
        stop_at(monkeypatch, 13, lambda loss: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            go(root, tmp_path / "run", **changes)
        monkeypatch.undo()
        return tmp_path / "run"

    return begin


def stop_at(monkeypatch, step, what):
    """Let `what` change the loss of a step."""
    calls, real = [], F.cross_entropy

    def cross_entropy(*arguments, **options):
        loss = real(*arguments, **options)
        if loss.requires_grad:  # a validation's does not
            calls.append(loss)
            loss = what(loss) if len(calls) == step else loss
        return loss

    monkeypatch.setattr(F, "cross_entropy", cross_entropy)


def test_an_unreadable_checkpoint_is_passed_over(begun, root, whole, caplog):
    folder = begun()
    newest = folder / "checkpoints" / checkpoints(folder)[-1]
    assert newest.name == "step-000000012.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    with (folder / "metrics.csv").open("a") as file:
        file.write("15,3,0.")  # a torn line
    with caplog.at_level(logging.WARNING):
        go(root, folder)
    assert any("step-000000012.pt: cannot be read" in record.message for record in caplog.records)
    assert (folder / "checkpoints" / "step-000000012.pt.unreadable").exists()
    assert [row["step"] for row in rows(folder)] == [row["step"] for row in rows(whole)]
    assert "from step 0" in (folder / "log.txt").read_text()
    assert "from step 10" in (folder / "log.txt").read_text()


def test_changed_and_mixed_clips_are_the_same_after_a_stop(begun, root, tmp_path):
    changes = {"jitter": (0.4, 0.4, 0.4, 0.1), "augment": (2, 9), "mix": (0.4, 1.0), "freeze": 1, "accumulate": 2,
               "steps": 10}  # fmt: skip
    go(root, tmp_path / "whole", **changes)
    folder = begun(**changes)
    go(root, folder, workers=2, **changes)
    assert_same_run(folder, tmp_path / "whole")


def test_a_folder_from_before_a_setting_goes_on_without_it(begun, root, whole):
    folder = begun()
    content = json.loads((folder / "config.json").read_text())
    for part, names in (("recipe", NEWER), ("training", ("jitter", "augment")), ("validation", ("jitter", "augment"))):
        for name in names:
            del content["run"][part][name]
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"\(recipe\.freeze: nothing there, 1 now\)"):
        go(root, folder, freeze=1)
    go(root, folder)
    assert_same_run(folder, whole)


class Board:
    """Stands for TensorBoard's writer: the numbers by name and step, as TensorBoard would show them."""

    shown: ClassVar = {}

    def __init__(self, folder, purge_step):
        self.shown = Board.shown.setdefault(folder, {})
        for key in [key for key in self.shown if key[1] >= purge_step]:
            del self.shown[key]

    def add_scalar(self, name, value, step):
        self.shown[name, step] = value

    def flush(self):
        pass

    close = flush


def test_tensorboard_shows_the_metrics_also_after_a_stop(begun, root, monkeypatch):
    """The setting decides nothing about the weights: it may be changed on the way."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Board))
    folder = begun(tensorboard=True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Board))
    go(root, folder, tensorboard=True)
    expected = {}
    for row in rows(folder):
        group = "validation" if row["val_loss"] else "steps"
        named = {f"{group}/{name}": float(value) for name, value in row.items() if value and name != "step"}
        expected |= {(name, int(row["step"])): value for name, value in named.items()}
    assert Board.shown[folder] == expected


def test_without_tensorboard_a_run_does_not_begin(root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as if it were not installed
    with pytest.raises(TrainingError, match=r"pip install 'repflow\[tensorboard\]'"):
        go(root, tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run" / "metrics.csv").exists()
    with pytest.raises(ValueError, match="tensorboard: expected a folder"):
        go(root, None, tensorboard=True)


def test_another_configuration_is_refused(whole, root):
    before = {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=r"\(recipe\.rate: 0\.003 there, 0\.1 now\); name another folder"):
        go(root, whole, rate=0.1)
    with pytest.raises(ValueError, match="model: repflow_2d there, flow_of_flow_2d now"):
        go(root, whole, "flow_of_flow_2d")
    assert before == {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()}


def test_a_second_process_is_kept_out(root, start, tmp_path):
    folder = tmp_path / "run"
    process = start(root, folder, changes={"steps": 2000})
    wait_for_lines(process, folder, 1)
    with pytest.raises(TrainingError, match="another process is training there"):
        go(root, folder, steps=2000)
    assert process.is_alive()
    process.kill()
    process.join()
    with pytest.raises(ValueError, match="another configuration"):  # nobody is there any more
        go(root, folder)


def test_a_finished_run_is_not_run_again(whole, root):
    trained = go(root, whole, workers=2)
    state = read_checkpoint(whole / "checkpoints" / "step-000000030.pt")
    assert trained.losses == state["losses"].tolist()
    assert trained.best == state["best"]
    assert same(dict(trained.model.state_dict()), dict(state["model"]))


def test_the_best_step_s_model_can_be_loaded(whole):
    model = load_model(whole / "best.pt")
    assert not model.training
    assert same(dict(model.state_dict()), dict(read_checkpoint(whole / "best.pt")["model"]))


def test_a_new_head_on_a_trained_body(whole):
    torch.manual_seed(5)
    model = build_model("repflow_2d", 7, **MODEL)
    head = model.classify.weight.clone()
    model.load_state_dict(model.state_dict() | body_weights(model, whole / "best.pt"))
    trained = read_checkpoint(whole / "best.pt")["model"]
    assert torch.equal(model.classify.weight, head)
    assert all(torch.equal(value, trained[key]) for key, value in model.state_dict().items() if "classify" not in key)


def test_a_checkpoint_of_another_model_is_refused(whole, root, tmp_path):
    with pytest.raises(ValueError, match=r"is of repflow_2d with .*flow\.conv\.weight missing there.*another checkp"):
        go(root, tmp_path / "run", "flow_of_flow_2d", init_from=whole / "best.pt")
    (tmp_path / "no.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"no\.pt: cannot be read"):
        go(root, tmp_path / "run2", init_from=tmp_path / "no.pt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="expected a checkpoint of `repflow train`"):
        read_checkpoint(tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError, match="check the path"):
        read_checkpoint(tmp_path / "nowhere.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(value, root, tmp_path, monkeypatch):
    stop_at(monkeypatch, 13, lambda loss: loss * value)
    with pytest.raises(TrainingError, match=r"step 13: the loss is (nan|inf); .*step-000000012\.pt.*lower rate"):
        go(root, tmp_path / "run")
    assert checkpoints(tmp_path / "run") == ["step-000000010.pt", "step-000000012.pt"]
    assert all(v.isfinite().all() for v in load_model(tmp_path / "run/checkpoints/step-000000012.pt").parameters())


def test_a_weight_that_is_not_finite_is_never_saved(root, tmp_path, monkeypatch):
    """Its loss shows a step later only."""

    def spoil(loss):
        loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss

    stop_at(monkeypatch, 12, spoil)
    with pytest.raises(TrainingError, match=r"step 12: a weight is not finite; .*step-000000010\.pt"):
        go(root, tmp_path / "run")


def test_too_little_memory_says_what_to_change(root, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(F, "cross_entropy", fail)
    with pytest.raises(TrainingError, match=r"8 clips at once of 4 frames, whole frames .*accumulate=2.*bf16-mixed"):
        go(root, tmp_path / "run")


def test_a_full_disk_keeps_the_newest_checkpoint(root, whole, tmp_path, monkeypatch):
    sync, folder = os.fsync, tmp_path / "run"

    def full(descriptor):
        if any((folder / "checkpoints").glob("step-000000012.pt.*")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(run_folder.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*step-000000010\.pt\. Make room"):
        go(root, folder)
    assert checkpoints(folder) == ["step-000000008.pt", "step-000000010.pt"]
    monkeypatch.undo()
    go(root, folder)
    assert checkpoints(folder) == checkpoints(whole)


def test_a_folder_that_cannot_be_written(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/run .*there is no checkpoint yet.*another folder"):
        go(root, tmp_path / "file" / "run")
