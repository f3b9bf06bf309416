"""`python -m lactok.data build ...`: training data made to a recipe, on Ray Data."""

from __future__ import annotations

import sys

USAGE = """\
usage: python -m lactok.data build recipe=paper|mini out=DIR [key=value ...]

Makes training data as section 4.4 of the paper says: images synthesised from captions (and images that exist) are
captioned, judged, de-duplicated, compared with the evaluation sets, and written to DIR as WebDataset shards with a
Parquet index. Runs on this machine's Ray, or joins a cluster. The same command goes on after any kill, and changes
nothing once DIR/build.json stands. docs/data-construction.md has the whole way.

Try it without weights and GPUs (scenes, two cores, a minute or two), then look at data/mini/report.html:

    python -m lactok.data build recipe=mini items=2000 out=data/mini

What the paper's recipe would take; what it lacks here, with the command that gets each; and the build on a cluster:

    python -m lactok.data build --plan recipe=paper items=30000000 gpus=256
    python -m lactok.data build recipe=paper captions=[laion/] out=/data/starred
    python -m lactok.data build recipe=paper captions=[laion/] images=[aesthetics/] out=/data/starred address=auto

  captions=[F,...]    caption lists to synthesise from: .txt, .jsonl, .parquet (LAION's TEXT column), or their folders
  images=[F,...]      images that exist: folders, WebDataset .tar, .parquet
  items=N             at most so many items of the sources; recipe=mini: how many scenes
  generator=NAME      synthesiser [flux.1-dev]; options.KEY=V its options
  captioner=72b|7b    Qwen2.5-VL of that size, or a local folder of one; words=20, tries=3
  judges=[N>S,...]    scores that an image must exceed [imagereward>0.9,mps>12.0]
  duplicates=[...]    content, perceptual, caption [all]; copies=N images a caption [1]; 0: any number
  leakage=[F,...]     evaluation images that must not be trained on: folders, photos [photos]; leak_cosine=0.95
  size=1024 keep_format=jpg|png|webp quality=95 shard=1000 unit=64 longest_caption=2000
  stages.NAME.actors=N|A:B .gpus=G .cpus=C .batch=B    of synthesise, caption, judge, inspect
  address=HOST:PORT   a Ray cluster; else Ray starts here, with cpus=N and store=MB of memory for objects
  seed=S plant.KEY=PART                                of recipe=mini: duplicates, leaks, broken, hostile

  --plan items=N existing=N gpus=M [speed.STAGE=IMAGES_A_SECOND] [speeds=report.json]
                      prints GPU hours, days and storage of so many synthesised and existing images; nothing runs
  every=10            seconds between two lines that say how far the build is

Exit status: 0 finished, 2 settings, models or a folder that can't be used, 130 stopped.
"""


def main(arguments: list[str]) -> int:
    """See USAGE."""
    if not arguments or {"--help", "-h"} & set(arguments) or arguments[0] != "build":
        asked = bool({"--help", "-h"} & set(arguments))
        print(USAGE, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    from lactok.data.construct.command import build_command

    return build_command(arguments[1:])


if __name__ == "__main__":
    from lactok.pipes import run_command

    sys.exit(run_command(main))
