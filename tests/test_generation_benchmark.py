"""The benchmark of generation runs in miniature; its limits count what they say, and its plain loop is a fair one."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import generate as benchmark
from benchmarks import gpu
from benchmarks.gpu_session import Record, RunRecord, Session
from benchmarks.measuring import Settings
from lactok.models.gpt_generation import gather, generate
from lactok.models.gpt_sampling import Sampling
from tests.support import ROOT

QUICK = Settings(torch.device("cpu"), "fp32", compile=False, quick=True, seconds=0.0)


def bench() -> benchmark.Bench:
    return benchmark.Bench("GPT", benchmark.QUICK, QUICK, benchmark.Rates(1e9, 1e9))


def test_the_script_in_miniature(tmp_path: Path):
    path = tmp_path / "generation.json"
    script = str(ROOT / "benchmarks" / "generate.py")
    arguments = ["--quick", "--threads", "1", "--device", "cpu", "--compile", "--json", str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "150"}
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("GPT-small, 16 ids", "matrix rate", "copy", "plain loop", "bandwidth", "arithmetic"):
        assert word in done.stdout
    record = json.loads(path.read_text())
    ways = (benchmark.EAGER, benchmark.COMPILED, benchmark.PLAIN)
    assert [(row["way"], row["batch"]) for row in record["rows"]] == [(way, batch) for batch in (1, 2) for way in ways]
    for row in record["rows"]:
        assert row["ids_per_second"] == pytest.approx(row["batch"] * 16 / row["seconds"])
        assert row["images_per_second"] == pytest.approx(row["ids_per_second"] / 16)
        limit = min(row["bandwidth_limit"], row["matrix_limit"])
        assert row["share"] == pytest.approx(row["ids_per_second"] / limit)
        assert row["peak_bytes"] is None
    assert record["machine"]["copy_bytes_per_second"] > 0
    assert record["not_measured"] == []


def test_the_plain_loop_gives_the_ids_of_the_package():
    subject, greedy = bench(), Sampling(guidance_scale=3.0, top_k=1)
    prompts = subject.prompts(3)
    condition, seen = gather(subject.model, prompts)
    plain = benchmark.plain_loop(subject.model, condition, seen, greedy)
    assert torch.equal(plain, generate(subject.model, prompts, greedy))
    assert len(plain.unique()) > 10


def test_flops_are_those_of_torch_s_counter():
    """At one length of prompts, where no padding is computed; the counter leaves masked attention's empty slots in."""
    subject, config = bench(), benchmark.QUICK
    (prompt,) = subject.prompts(1)
    with FlopCounterMode(display=False) as counter:
        generate(subject.model, [prompt])
    load = benchmark.load_of(config, 1, 4)
    projection = 2 * (config.caption_dim + config.dim) * config.dim * 2 * config.cls_token_num
    assert load.flops == pytest.approx(counter.get_total_flops() - projection, rel=0.01)


def test_bytes_by_hand():
    config = dataclasses.replace(benchmark.QUICK, block_size=4, n_layer=1, vocab_size=8)
    weights = config.dim * (4 * config.dim + 3 * config.ffn_dim + 8)
    slots = 2 + 3 + 4  # the prefix' mean and the ids so far, in the three steps after it
    assert benchmark.load_of(config, 3, 2).bytes == 2 * (4 * weights + 6 * 2 * config.dim * slots)


def test_the_part_of_the_gpu_benchmark(tmp_path: Path):
    session = Session(QUICK, Record(tmp_path, RunRecord("now", 1.0, True, "a CPU")), lambda line: None)
    (part,) = [part for part in gpu.PARTS if part.name == "generation"]
    assert gpu.run(session, [part], 300)
    (run,) = json.loads((tmp_path / "gpu.json").read_text())["runs"]
    (found,) = run["parts"]
    rows = [(row["way"], row["batch"]) for row in found["results"]]
    assert rows == [("compiled", 1), ("eager", 1), ("compiled", 2), ("eager", 2), ("plain loop", 2)]
    assert {row["kind"] for row in found["results"]} == {"Generated"}
