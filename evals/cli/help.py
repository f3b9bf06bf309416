"""The text of `python -m evals.run --help`. Imports nothing that takes time."""

from evals.suites.catalog import suites

TEXT = f"""\
Measure image tokenizers: encode and decode every picture, score the reconstructions, write a table.

    python -m evals.run suite=recon tokenizers=all          the main job: two CPU cores, no network, two minutes
    python -m evals.run tokenizers=llamagen limit=32        one tokenizer (and the calibration rows) on 32 pictures
    python -m evals.run dataset=folder dataset.root=DIR     your own pictures
    python -m evals.run scale=paper dataset=folder dataset.root=DIR   published weights, the paper's metrics (a GPU)

    torchrun --nproc-per-node=8 -m evals.run ...            the same on 8 GPUs, one process each (docs/scale-out.md)

Keys (key=value, Hydra syntax; lists are [a,b]; write "dataset.root='/my dir'" when a value has spaces, = or brackets):

  suite=recon             what to measure:                                                                [recon]
{chr(10).join(f"      {suite.name:<20}{suite.summary}" for suite in suites().values())}
  roots.NAME=DIR          of table1, table2, table4, table5: the folder of each dataset. They mean scale=paper, run on
                          their datasets in turn and write the paper's table to OUT/tables; dataset=NAME
                          dataset.root=DIR runs on one alone (docs/paper_tables.md)
  scale=mini|paper        a preset of weights, features, dataset and protocol; each can also be set alone   [mini]
  tokenizers=all          a name, [a,b], or all; `python -m evals list` shows them                           [all]
  calibration=true|false  add the calibration rows: identity, resize, downsample-bits, mean-colour          [true]
  weights=mini|paper      miniatures that ship with the package, or published checkpoints             [the scale's]
  features=effnet|inception   which default metrics: EfficientNet-Lite0's, or Inception's and LPIPS   [the scale's]
  metrics=default         or a list: psnr, ssim, ssim-gauss11, lpips-alex, lpips-vgg, rfid, kid, effnet, fd-effnet,
                          colour, codes
  dataset=photos|folder   photos: 128-pixel tiles of scikit-image's photographs; folder: needs dataset.root=DIR
  dataset=imagenet-val|coco-val2017|mjhq-5k|flux-5k   the paper's, with dataset.root=DIR (`python -m evals data list`);
                          dataset.expect=N where DIR holds a part, of N pictures
  on_bad_image=stop|skip  stop with the list of all unreadable pictures, or leave them out and say so       [stop]
  limit=N                 only N pictures, spread over the dataset by a fixed rule                           [all]
  protocol=mini-128|native-256|paper-1024   every convention that moves a number; single fields can be changed:
                          protocol.fit=crop, protocol.back_filter=bilinear, ... (docs/protocol.md)    [the scale's]
  seed=0 seeds=K          seed of decoders that draw noise; K decodings of each picture, with their spread  [0, 1]
  device=auto|cpu|cuda    [auto: cuda where there is one]
  precision=fp32|tf32|bf16   of the tokenizers; metrics are always fp32 or finer                            [fp32]
  batch_size=N            of models and metrics; halved when memory runs out                              [chosen]
  resident=N              tokenizers that are held in memory together            [mini weights: all, paper: one]
  save_pictures=true|false   keep every reconstruction in the store                                        [false]
  out=DIR                 the store: DIR/cache (work done) and DIR/runs (tables and reports)             [results]
  launcher=here|slurm     slurm: submit this command as a job (pip install 'lactok[slurm]'); slurm.nodes,
                          slurm.tasks_per_node, slurm.gpus_per_node, slurm.cpus_per_task, slurm.minutes,
                          slurm.more.partition=NAME and other sbatch options                              [here]
  options.NAME.key=value  a tokenizer's own options, e.g. options.llamagen.weights=/models/vq_ds16_c2i.pt

A run that stops, for whatever reason, goes on where it was when the same command is given again. Exit status: 0 all
rows measured; 1 a row or a metric failed (named in the table); 2 the command, the data or the store can't be used (at
scale=paper all data and weights that are lacking are listed at once); 130 stopped by Ctrl-C.
"""
