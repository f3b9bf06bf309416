"""The prompts of a file: what is read of each form, and that no bad line is passed over."""

import json
from hashlib import sha256
from pathlib import Path

import pytest

from evals.datasets.base import DatasetError, DatasetRequest, MissingData
from evals.datasets.registry import dataset_class, open_dataset
from lactok.items import Item


def open_file(path: Path | str | None, **options):
    request = DatasetRequest(cache_dir=Path("unused"), root=None if path is None else str(path), **options)
    return open_dataset("prompts", request)


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_text_file_has_a_prompt_a_line(tmp_path):
    dataset = open_file(written(tmp_path / "p.txt", "a cat \r\na dög\n"))
    digest = [sha256(prompt.encode()).hexdigest() for prompt in ("a cat", "a dög")]
    assert dataset.items == [
        Item("00000", "00000", digest[0], "a cat"),
        Item("00001", "00001", digest[1], "a dög"),
    ]
    assert (dataset.notes, dataset.left_out) == ([], [])


def test_the_columns_of_a_csv(tmp_path):
    text = '\ufeffid,prompt,cluster,colour\nx,"two, cats\nand a dog",animals,red\ny,a cup,,blue\n'
    with pytest.raises(DatasetError, match=r"1 bad line\(s\).*\n  line 4: cluster is ''"):
        open_file(written(tmp_path / "p.csv", text))
    items = open_file(written(tmp_path / "p.csv", text.replace(",,", ",things,"))).items
    assert [(i.id, i.cluster, i.payload, i.tags) for i in items] == [
        ("x", "animals", "two, cats\nand a dog", {"colour": "red"}),
        ("y", "things", "a cup", {"colour": "blue"}),
    ]


def test_the_columns_of_a_jsonl(tmp_path):
    counted = [{"class": "cat", "count": 1}]
    lines = [
        {"prompt": "a cat", "id": 7, "tag": "counting", "include": [{"class": "cat", "count": 1}]},
        {"prompt": "b"},
    ]
    items = open_file(written(tmp_path / "p.jsonl", "\n".join(map(json.dumps, lines)) + "\n")).items
    assert [(i.id, i.cluster, i.payload) for i in items] == [("7", "7", "a cat"), ("00001", "00001", "b")]
    assert items[0].tags == {"tag": "counting", "include": counted}


def test_one_prompt_is_the_same_work_in_every_file(tmp_path):
    text = open_file(written(tmp_path / "a.txt", "a cat\n"))
    tagged = open_file(written(tmp_path / "b.jsonl", '{"prompt": "a cat", "id": "00000", "tag": 1}\n'))
    assert text.items[0].content_hash == tagged.items[0].content_hash
    assert text.fingerprint != tagged.fingerprint, "but a table of other tags is another table"
    assert open_file(written(tmp_path / "c.txt", "a cat\na cat\na dog\n")).notes == [
        "2 prompts are there more than once: the same work serves them",
        "1 of 3 items are copies of others (equal content): copies are one cluster, and there are 2 clusters",
    ]


def test_a_limit_takes_a_fixed_part_in_order(tmp_path):
    path = written(tmp_path / "p.txt", "".join(f"prompt {i}\n" for i in range(50)))
    few, more = (open_file(path, limit=n).items for n in (5, 20))
    assert len(few) == 5
    assert {i.id for i in few} < {i.id for i in more}
    assert [i.id for i in few] == sorted(i.id for i in few)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "a\n\nb\n \n", r"2 bad line\(s\) in .*p\.txt:\n  line 2: prompt is '': .*\n  line 4: prompt is ''"),
        ("p.txt", "", "holds no prompts; expected a .txt"),
        ("p.txt", b"caf\xe9\n", r"is not UTF-8 \(byte 3\)"),
        ("p.csv", "text\na cat\n", r"has the columns text: expected `prompt`"),
        ("p.csv", "prompt,prompt\na,b\n", "each one once"),
        ("p.csv", "prompt,tag\na cat\n", r"line 2: 1 values for the 2 columns prompt, tag"),
        ("p.csv", "prompt,tag\na cat,b,c\n", r"line 2: 3 values for the 2 columns"),
        ("p.csv", 'prompt\n"a cat\n', "is no CSV file: line 1: unexpected end"),
        ("p.csv", "prompt,id\na cat,x\na dog,x\n", "line 3: the id 'x' is there twice"),
        ("p.jsonl", '{"prompt": "a cat"}\n\n', "line 2: it is no JSON"),
        ("p.jsonl", '["a cat"]\n', "line 1: it is list: expected an object"),
        ("p.jsonl", '{"text": "a cat"}\n', "line 1: prompt is None"),
        ("p.jsonl", '{"prompt": 3}\n', "line 1: prompt is 3: expected text"),
        ("p.jsonl", '{"prompt": "\\ud83d"}\n', "half of a surrogate pair"),
        ("p.jsonl", '{"prompt": "a", "x": NaN}\n', "NaN is no JSON number"),
        ("p.jsonl", '{"prompt": "a", "id": true}\n', "id is True: expected text"),
        ("p.jsonl", '{"prompt": "a", "id": "two\\nlines"}\n', "id is 'two.nlines': expected text of one line"),
        ("p.json", "[]", r"p\.json: expected a \.txt file"),
    ],
)
def test_bad_files_are_refused_with_the_lines(tmp_path, name, text, message):
    with pytest.raises(DatasetError, match=message):
        open_file(written(tmp_path / name, text))


def test_many_bad_lines_are_counted(tmp_path):
    with pytest.raises(DatasetError, match=r"25 bad line\(s\)") as caught:
        open_file(written(tmp_path / "p.jsonl", "no\n" * 25))
    assert str(caught.value).count("  line ") == 10
    assert "and 15 more" in str(caught.value)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(DatasetError, match=r"dataset\.root=FILE"):
        open_file(None)
    with pytest.raises(MissingData, match="does not exist"):
        open_file(tmp_path / "absent.txt")
    with pytest.raises(MissingData, match="is a folder"):
        open_file(tmp_path)
    with pytest.raises(DatasetError, match="prompts has no number"):
        open_file(written(tmp_path / "p.txt", "a\n"), expect=1)
    assert dataset_class("prompts").needs().here is None
