"""Training: any system on any data set, on one device or many, that can be killed at any moment and loses nothing.

**Exact resume.** A run in a folder that is stopped, by `kill -9` too, and started again by the same call ends with the
same weights, optimiser, schedule and metrics (but for their times) as one that was never stopped: bit by bit on a CPU.
Lightning has the loop, the devices, the precision, accumulation and clipping. What its defaults lack for this, and is
here:

* Checkpoints are written under another name in their own folder, flushed to the disk, and renamed. (Lightning moves
  them from the system's temporary folder, which is no single step across file systems.) The two newest are kept; one
  that cannot be read is set aside with a warning, and the one before it taken.
* Batches depend on (seed, step) alone: the sampler begins at any step. It hands out (epoch, index) pairs, so that a
  worker that reads ahead beyond an epoch's end cuts clips as in the epoch that they are for.
* Random states (Python's, NumPy's, PyTorch's on every device) are set anew at each step from (seed, step, part of the
  batch, process): there are none to keep, where Lightning would have to keep them and doesn't.
* metrics.csv only grows, a row at a time, is flushed to the disk before every checkpoint, and is cut back to the
  checkpoint's step on resume. (Lightning's CSV logger deletes what it finds.)
* All that decides is in config.json; another configuration is refused in the same folder.

On a GPU the same holds for the batches, the clips and the random numbers; sums inside cuDNN's convolutions and
scatter operations may be taken in another order, so weights differ in their last digits from run to run.

**A run's folder.** config.json: model, recipe, data, versions, commit. metrics.csv: a row every `log_every` steps
(step, epoch from 0, mean loss since the last such row, learning rate, mean seconds a step, the share of them spent
waiting for data, peak memory in MiB: of the GPU, else of the process) and one a validation (val_loss, val_top1 in
percent). best.pt: the weights of the best validation, by top-1, then loss. checkpoints/: the newest two. log.txt.

**Several devices.** `recipe.batch` is that of all of them together. One machine with four GPUs, in the simplest form:

    repflow train ... --devices 4

or by torchrun, which on two machines is run on both (the folders of data and run must be shared):

    torchrun --nproc-per-node 4 -m repflow train ... --devices 4
    torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint FIRST_MACHINE:29500 \
        -m repflow train ... --devices 4 --nodes 2

or by SLURM, where a job that is requeued goes on where it was:

    #!/bin/bash
    #SBATCH --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=8
    #SBATCH --time=24:00:00 --requeue --open-mode=append
    srun repflow train --data hmdb51 /data/hmdb51 --model repflow_2plus1d --preset 2019 --out runs/repflow --workers 7 \
        --devices 4 --nodes 2

A notebook starts the first of these with `follow`, which yields the rows of metrics.csv as they are written.
Batch norm is synchronised over GPUs; over processes on CPUs it cannot be, there each uses its own part of the batch.
"""

from repflow.evaluation import motion_accuracy, predict
from repflow.training.batches import Part, split
from repflow.training.checkpoint import RELEASED, Checkpoint, load_model, open_checkpoint, read_checkpoint
from repflow.training.folder import TrainingError, seconds_of
from repflow.training.follow import follow
from repflow.training.learner import FLOW_PARAMETERS, parameter_groups
from repflow.training.loop import Trained, train
from repflow.training.recipe import PRESETS, Recipe

__all__ = [
    "FLOW_PARAMETERS",
    "PRESETS",
    "RELEASED",
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
    "seconds_of",
    "split",
    "train",
]
