"""Training: any system on any data set, on one device or many; a run that is killed at any moment loses nothing.

**Exact resume.** A run in a folder that is stopped, even by `kill -9`, and started again by the same call ends with the
same weights, optimiser, schedule and metrics (but for their times) as a run that was never stopped: bit by bit on a
CPU. `loop.py` is that run from batch to checkpoint; Lightning Fabric gives it devices, precision and processes.

* Checkpoints are written under another name in their own folder, flushed to the disk, and renamed. The two newest are
  kept. If the newest cannot be read, it is renamed with a warning, and the one before it is taken.
* Batches depend on (seed, step) alone: the sampler begins at any step. It gives (epoch, index) pairs, so that a worker
  that reads ahead into the next epoch cuts each clip as in the clip's own epoch.
* Random states (Python's, NumPy's, PyTorch's on every device) are set anew at each step from (seed, step, part of the
  batch, process), so no checkpoint has to keep them.
* metrics.csv only grows, a row at a time, is flushed to the disk before every checkpoint, and is cut back to the
  checkpoint's step on resume.
* config.json holds every setting that decides about the weights; the folder refuses another configuration.

On a GPU the same holds for the batches, the clips and the random numbers. cuDNN's convolutions and scatter operations
may add in another order, so the last digits of the weights differ from run to run.

**A run's folder.** config.json: model, recipe, data, versions, commit. metrics.csv: one row every `log_every` steps
(step, epoch from 0, mean loss since the last such row, learning rate, mean seconds a step, the share of them spent
waiting for data, peak memory in MiB: of the GPU, or of the process without one) and one row a validation (val_loss,
val_top1 in percent), each with empty fields in the columns of the other. best.pt: the weights of the best validation,
by top-1, then loss. Without clips for validation there are no such rows and no best.pt. checkpoints/: the newest two.
log.txt. With `tensorboard` in the recipe, TensorBoard's files with the numbers of metrics.csv, as steps/loss and
validation/val_top1.

**Several devices.** `recipe.batch` is that of all of them together. One machine with four GPUs takes
`repflow train ... --devices 4`, which a notebook starts with `follow`. For several machines, which must share the
folders of data and run, docs/training.md has the commands of torchrun and SLURM; a requeued job goes on where it was.
Batch norm is synchronised over GPUs. PyTorch cannot do so over processes on CPUs: each uses its own part of the batch.
"""

from repflow.evaluation import motion_accuracy, predict
from repflow.training.batches import Part, split
from repflow.training.checkpoint import FEEDS, Checkpoint, load_model, open_checkpoint, read_checkpoint, released
from repflow.training.folder import TrainingError, seconds_of
from repflow.training.learner import FLOW_PARAMETERS, parameter_groups
from repflow.training.loop import Trained, train
from repflow.training.recipe import PRESETS, Recipe
from repflow.training.record import follow

__all__ = [
    "FEEDS", "FLOW_PARAMETERS", "PRESETS", "Checkpoint", "Part", "Recipe", "Trained", "TrainingError", "follow",
    "load_model", "motion_accuracy", "open_checkpoint", "parameter_groups", "predict", "read_checkpoint",
    "released", "seconds_of", "split", "train",
]  # fmt: skip
