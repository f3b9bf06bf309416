"""GenEval's file of prompts in small: as many of each task, with metadata of the published form."""

from __future__ import annotations

import json
from pathlib import Path

from lactok.data.scenes.captions import canonical
from lactok.data.scenes.combinations import Split
from lactok.data.scenes.content import draw_content, metadata

COUNT = 12


def lines() -> list[str]:
    drawn = [draw_content(7, index, Split.ALL) for index in range(COUNT)]
    return [json.dumps(dict(metadata(content, canonical(content)))) for content in drawn]


def write_geneval(root: Path) -> Path:
    """evaluation_metadata.jsonl in the folder; returns the folder."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "evaluation_metadata.jsonl").write_text("\n".join(lines()) + "\n")
    return root
