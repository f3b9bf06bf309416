"""`python -m evals selftest`: sound tokenizers pass, and each planted fault is found by the check of its name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evals.cli import selftest
from tests.support import TOY

# By class: its body, the checks that must fail, and what one of them says.
FAULTS: dict[str, tuple[str, set[str], str]] = {
    "BadInfo": (
        "info = TokenizerInfo('toy', 64, 2.5, 64, 64)",
        {"info"}, r"info.codebook_size is 2.5, expected a whole number",
    ),
    "NoTokens": ("def encode(self, images): return images", {"encode"}, "encode returned Tensor, expected"),
    "ShortIds": (
        "def encode(self, images): return Tokens(super().encode(images).ids.int())",
        {"encode"}, r"ids are torch.int32 of shape \(6, 64\), expected int64",
    ),
    "BigIds": (
        "def encode(self, images): return Tokens(super().encode(images).ids + 100)",
        {"encode"}, r"expected 0 to below the codebook size, 256",
    ),
    "Blind": (
        "def encode(self, images): return super().encode(torch.full_like(images, 0.5))",
        {"encode"}, "6 different images have the same ids",
    ),
    "Small": (
        "def decode(self, encoded, seeds): return super().decode(encoded, seeds)[..., :32, :32]",
        {"decode"}, r"expected float \(6, 3, 64, 64\)",
    ),
    "Symmetric": (
        "def decode(self, encoded, seeds): return super().decode(encoded, seeds) * 4 - 2",
        {"decode"}, r"expected RGB in \[0, 1\] \(a model that works in \[-1, 1\]",
    ),
    "Nan": (
        "def decode(self, encoded, seeds): return super().decode(encoded, seeds) * float('nan')",
        {"decode"}, "NaN or infinite values in 6 of 6 images",
    ),
    "Negative": (
        "def decode(self, encoded, seeds): return 1 - super().decode(encoded, seeds)",
        {"content"}, r"has its colours inverted \(1 - x\)",
    ),
    "Swapped": (
        "tint = torch.tensor([1.0, 0.6, 0.2]).view(1, 3, 1, 1)\n"
        "    def decode(self, encoded, seeds): return super().decode(encoded, seeds) * self.tint.flip(1)",
        {"content"}, "has its colours in the order BGR",
    ),
    "RandomIds": (
        "def encode(self, images): return super().encode((images + torch.rand_like(images)) / 2)",
        {"encode repeats"}, "encode gave other results for the same images",
    ),
    "GlobalNoise": (
        "def decode(self, encoded, seeds):\n"
        "        images = super().decode(encoded, seeds)\n"
        "        return images + 0.1 * torch.rand_like(images)",
        {"decode repeats"}, r"noise must come from seeds\[i\] alone",
    ),
    "UnstatedNoise": (
        "noise = True\n    info = TokenizerInfo('toy', 64, 256, 64, 64)",
        {"seeds"}, "but info.deterministic is True",
    ),
    "NoNoise": (
        "info = TokenizerInfo('toy', 64, 256, 64, 64, deterministic=False)",
        {"seeds"}, "other seeds give the same image, but info.deterministic is False",
    ),
    "OneSeed": (
        "noise = True\n    def decode(self, encoded, seeds): return super().decode(encoded, [seeds[0]] * len(seeds))",
        {"batch size", "order"}, "decode depends on the batch",
    ),
    "BatchNorm": (
        "def encode(self, images): return super().encode((images - images.mean() + 0.5).clamp(0, 1))",
        {"batch size"}, r"encode depends on the batch: \d+\.\d% of the tokens differ",
    ),
    "ByPlace": (
        "def decode(self, encoded, seeds):\n"
        "        return super().decode(encoded, seeds) + 0.02 * torch.arange(len(seeds)).view(-1, 1, 1, 1)",
        {"batch size", "order"}, "decode depends on the order: images are up to 0.1",
    ),
    "Leaking": (
        "def encode(self, images):\n"
        "        self.light = images.mean()\n"
        "        return super().encode(images)\n"
        "    def decode(self, encoded, seeds): return super().decode(encoded, seeds) + 0.1 * self.light",
        {"state"}, "a call changes later ones",
    ),
    "Counting": (
        "calls = 0\n"
        "    def decode(self, encoded, seeds):\n"
        "        self.calls += 1\n"
        "        return super().decode(encoded, seeds) + 0.001 * self.calls",
        {"decode repeats", "state"}, "gave another image",
    ),
    "SmallTable": (
        "def decode(self, encoded, seeds):\n"
        "        return super().decode(Tokens((torch.arange(255) / 1)[encoded.ids].long()), seeds)",
        {"ids"}, "decode can't take ids 0 and 256 - 1: index 255 is out of bounds",
    ),
    "NoOutputSize": (
        "info = TokenizerInfo('toy', 64, 256, 64, None)",
        {"info"}, r"output_size is None, which means the evaluation's size, and input_size is 64",
    ),
    "AnySize": (
        "info = TokenizerInfo('toy', 64, 256, None, None)\n"
        "    def decode(self, encoded, seeds): return F.interpolate(super().decode(encoded, seeds), size=128)",
        {"other sizes"}, r"input_size None takes any size: \(1, 3, 64, 128\) came back as \(1, 3, 128, 128\)",
    ),
}  # fmt: skip
NEEDED_CHECKS = {"info", "encode", "decode"}


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("plugins") / "faulty.py"
    classes = [f"class {name}(Toy):\n    {body}\n" for name, (body, _, _) in FAULTS.items()]
    more = (
        "class Noisy(Toy):\n    noise = True\n"
        "class NoLayer(Toy):\n    def __init__(self, options, device): raise KeyError('layer 3')\n"
        "class Reusing(Toy):\n"
        "    def encode(self, images):\n"
        "        self.ids = getattr(self, 'ids', torch.zeros(64, 64, dtype=torch.int64))\n"
        "        self.ids[:len(images)] = super().encode(images).ids\n"
        "        images.zero_()\n"
        "        return Tokens(self.ids[:len(images)])\n"
    )
    file.write_text("\n".join([TOY, *classes, more]))
    return file


def lines(text: str) -> dict[str, tuple[str, str]]:
    """By check, its status and what it says."""
    found = re.findall(r"^(ok|failed|skipped) +(\w+(?: \w+)?)  +(.*)$", text, re.MULTILINE)
    return {name: (status, said) for status, name, said in found}


def test_sound_tokenizers_pass(plugins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (f"{plugins}:Toy", f"{plugins}:Noisy", "llamagen-mini", "titok-mini"):
        status = selftest.main([name, "device=cpu", "seconds=0"])
        out = capsys.readouterr().out
        assert status == 0, out
        found = lines(out)
        assert list(found) == [check for check, _ in selftest.CHECKS]
        assert {name for name, (status, _) in found.items() if status != "ok"} == {"other sizes"}
        assert re.search(r"encode [\d,.]+ images/s at batch 1, .* peak memory [\d,]+ MiB", found["speed"][1])


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found(plugins: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    _, wanted, said = FAULTS[name]
    assert selftest.main([f"{plugins}:{name}", "device=cpu", "seconds=0"]) == 1
    out = capsys.readouterr().out
    found = lines(out)
    failed = {check for check, (status, _) in found.items() if status == "failed"}
    assert wanted <= failed, out
    if wanted & NEEDED_CHECKS:
        assert f"The other checks need {wanted.copy().pop()}." in out
    assert re.search(said, " ".join(found[check][1] for check in wanted)), out


def test_what_the_harness_allows_is_said_and_no_fault(plugins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert selftest.main([f"{plugins}:Reusing", "device=cpu", "seconds=0"]) == 0
    found = lines(capsys.readouterr().out)
    assert found["buffers"] == (
        "ok",
        "encode gives the same buffer at each call; the harness copies, other callers must",
    )
    assert found["arguments"][1].startswith("encode its images overwritten")


def test_a_plugin_that_can_not_be_built_or_imported_fails(
    plugins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert selftest.main([f"{plugins}:NoLayer", "device=cpu"]) == 1
    assert "failed   build           KeyError: 'layer 3'" in capsys.readouterr().out
    (tmp_path / "broken.py").write_text("import no_such_library\n")
    assert selftest.main([f"{tmp_path}/broken.py:X"]) == 1
    out, err = capsys.readouterr()
    assert "failed   import" in out
    assert "No module named 'no_such_library'" in out
    assert "Traceback" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], ""),
        (["llamagen-mni"], "did you mean 'llamagen-mini'"),
        (["llamagen-mini", "titok-mini"], "2 names (llamagen-mini, titok-mini): expected one"),
        (["llamagen-mini", "devise=cpu"], "unknown key 'devise': did you mean 'device'"),
        (["llamagen-mini", "options.weight=x"], "did you mean 'options.llamagen-mini.weights'"),
        (["llamagen-mini", "seconds=soon"], "seconds=soon: expected a number"),
        (["lactok-t-mini", "options.steps=[1,2]"], "2 rows"),
        (["mean-colour-x"], "unknown tokenizer"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert selftest.main(arguments) == 2
    assert said in capsys.readouterr().err
