"""The text of `python -m evals.run --help`. Imports no plugin and nothing that takes time."""

from textwrap import wrap

from evals.suites.catalog import suites
from lactok.registry import entries


def _listed(group: str) -> str:
    """The registered names of a group, indented to stand below a key."""
    names = ", ".join(entries(group)) or "none is registered"
    return "\n".join(f"                          {line}" for line in wrap(names, 94))


TEXT = f"""\
Measure image tokenizers and generators. Reconstruction: every image through every tokenizer and back, scored against
itself. Generation: an image of every prompt by every generator. Writes a table and a report.

    python -m evals.run suite=recon tokenizers=all          the main job: two CPU cores, no network, two minutes
    python -m evals.run tokenizers=llamagen limit=32        one tokenizer (and the calibration rows) on 32 images
    python -m evals.run dataset=folder dataset.root=DIR     your own images
    python -m evals.run scale=paper dataset=folder dataset.root=DIR   published weights, the paper's metrics (a GPU)

    python -m evals.run suite=geneval                       text to image in miniature, by GenEval: three minutes
    python -m evals.run suite=generate generators=[sd1.5] dataset.root=prompts.txt   an image of every prompt (a GPU)

    torchrun --nproc-per-node=8 -m evals.run ...            the same on 8 GPUs, one process each (docs/scale-out.md)

Keys (key=value, Hydra syntax; lists are [a,b]; write "dataset.root='/my dir'" when a value has spaces, = or brackets):

  suite=recon             what to measure:                                                                [recon]
{chr(10).join(f"      {suite.name:<20}{suite.summary}" for suite in suites().values())}
  roots.NAME=DIR          of a table of the paper: the folder of each dataset. Tables mean scale=paper, run on
                          their datasets in turn and write the paper's table to OUT/tables; dataset=NAME
                          dataset.root=DIR runs on one alone (docs/paper_tables.md)
  scale=mini|paper        a preset of weights, features, dataset and protocol; each can also be set alone   [mini]
  tokenizers=all          of reconstruction: a name, [a,b], or all; `python -m evals list` shows them; or
                          [./my_tok.py:MyTok], [my_package.module:MyTok]: a class of your own, not packaged   [all]
                          (folder: images that exist; `python -m evals score` makes such rows)
  generators=all          of generation: the same                                                            [all]
  calibration=true|false  add the calibration rows, which say what the figures mean                         [true]
  round_trips=N           how often an image passes through the tokenizer before it is scored                 [1]
  costs=true|false        parameters, FLOPs and evaluations of encoder and decoder                         [false]
  drift=N                 figures after each of 1 to N round trips, of eight images                            [0]
  weights=mini|paper      miniatures that ship with the package, or published checkpoints             [the scale's]
  features=effnet|inception   whose Fréchet distance is a default metric: EfficientNet-Lite0's, or Inception's
                                                                                                      [the scale's]
  metrics=default         default, or a list of ([./my_metric.py:MyMetric] too):
{_listed("metrics")}
  judges.backend=ported|original   of generation: judges' networks of this project, or the published packages in
                          environments of their own (imagereward, geneval; `python -m evals judges install`)
                                                                                                        [ported]
  dataset=NAME            one of the following; those that do not ship need dataset.root=DIR          [the scale's]
{_listed("datasets")}
                          `python -m evals data list` says what to place where; dataset.expect=N where DIR holds a
                          part, of N images
  dataset.cluster=file|folder|CSV   of dataset=folder: what intervals resample: each file, the files of each folder,
                          or clusters by a CSV with columns file,cluster; copies always share one           [file]
  dataset.metadata=CSV    what tokenizers that ask for it are told of each image (a caption, a label): columns file and
                          one a fact (docs/adding-a-tokenizer.md)                                        [nothing]
  dataset.max_pixels=N    refuse images with more pixels, of folders and the paper's datasets         [89,478,485]
  on_bad_image=stop|skip  stop with the list of all unreadable images, or leave them out and say so         [stop]
  max_refused=N|P%        a model that refuses more items fails; those that it refuses are counted and not scored
                                                                        [1% in reconstruction, any in generation]
  limit=N                 only N items, spread over the dataset by a fixed rule                              [all]
  protocol=mini-128|native-256|paper-1024|as-generated   every convention that moves a number; single fields can be
                          changed: protocol.fit=crop, protocol.back_filter=bilinear, ... (docs/protocol.md)
                                                                                                      [the scale's]
  seed=0 seeds=K          seed of models that draw noise; K seed indices of each item, with their spread    [0, 1]
  device=auto|cpu|cuda    auto: cuda where there is one; at scale=paper a missing GPU is an error unless device=cpu
                          is given                                                                         [auto]
  precision=fp32|tf32|bf16   of the models; metrics are always fp32 or finer; tf32 on GPUs that have it; bf16:
                          weights of linear and convolution layers in bfloat16, VAEs in the dtype of their
                          publishers' code (float32 convolutions take TF32)                                [fp32]
  offline=true|false      no request to any network: what is not here is missing; HF_HUB_OFFLINE=1 does
                          the same                                                                        [false]
  batch_size=N            of models and metrics; halved when memory runs out                              [chosen]
  resident=N              models that are held in memory together                [mini weights: all, paper: one]
  workers=auto|N          processes on CPU cores that share the work, one thread each (OMP_NUM_THREADS=N: N);
                          auto: as many as cores and memory allow                                          [auto]
  save_images=true|false  keep every reconstruction in the cache (generated images always are)             [false]
  out=DIR                 DIR/cache (artifacts: work done) and DIR/runs (tables and reports)             [results]
  launcher=here|slurm     slurm: submit this command as a job (pip install 'lactok[slurm]'); slurm.nodes,
                          slurm.tasks_per_node, slurm.gpus_per_node, slurm.cpus_per_task, slurm.minutes,
                          slurm.more.partition=NAME and other sbatch options                              [here]
  options.NAME.key=value  a model's own options, e.g. options.llamagen.weights=/models/vq_ds16_c2i.pt; NAME of
                          ./my_tok.py:MyTok is MyTok; `python -m evals list tokenizers` shows them all
  options.NAME.key=[a,b]  a sweep: a row of the model for each value

Flags: -v also logs what is done without being asked for (workers, halved batches, retries); --quiet shows errors alone
and no progress.

A run that stops, for whatever reason, resumes where it was when the same command is given again. Exit status: 0 all
rows measured; 1 a row or a metric failed (named in the table); 2 the command, the data or the cache can't be used (at
scale=paper all data and weights that are missing are listed at once); 130 stopped by Ctrl-C.
"""
