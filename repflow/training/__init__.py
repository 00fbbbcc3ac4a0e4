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
val_top1 in percent). best.pt: the weights of the best validation, by top-1, then loss. checkpoints/: the newest two.
log.txt. With `tensorboard` in the recipe, TensorBoard's files with the numbers of metrics.csv, as steps/loss and
validation/val_top1.

**Several devices.** `recipe.batch` is that of all of them together. One machine with four GPUs, in the simplest form:

    repflow train ... --devices 4

or by torchrun; for two machines run it on both (they must share the folders of data and run):

    torchrun --nproc-per-node 4 -m repflow train ... --devices 4
    torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint FIRST_MACHINE:29500 \
        -m repflow train ... --devices 4 --nodes 2

or by SLURM; a job that is requeued goes on where it was:

    #!/bin/bash
    #SBATCH --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=8
    #SBATCH --time=24:00:00 --requeue --open-mode=append
    srun repflow train --data hmdb51 /data/hmdb51 --model repflow_2plus1d --preset 2019 --out runs/repflow --workers 7 \
        --devices 4 --nodes 2

A notebook starts the first of these with `follow`, which yields the rows of metrics.csv as they are written.
Batch norm is synchronised over GPUs. PyTorch cannot do so over processes on CPUs: each uses its own part of the batch.
"""

from repflow.evaluation import motion_accuracy, predict
from repflow.training.batches import Part, split
from repflow.training.checkpoint import FEEDS, Checkpoint, load_model, open_checkpoint, read_checkpoint, released
from repflow.training.folder import TrainingError, seconds_of
from repflow.training.follow import follow
from repflow.training.learner import FLOW_PARAMETERS, parameter_groups
from repflow.training.loop import Trained, train
from repflow.training.recipe import PRESETS, Recipe

__all__ = [
    "FEEDS",
    "FLOW_PARAMETERS",
    "PRESETS",
    "Checkpoint",
    "Part",
    "Recipe",
    "Trained",
    "TrainingError",
    "follow",
    "load_model",
    "motion_accuracy",
    "open_checkpoint",
    "parameter_groups",
    "predict",
    "read_checkpoint",
    "released",
    "seconds_of",
    "split",
    "train",
]
