"""The shape of the project: who imports whom, what stays light, and that files keep to the style."""

import ast
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from evals.suites.catalog import suites

ROOT = Path(__file__).resolve().parent.parent

# What each package may import of ours (docs/architecture.md).
ALLOWED = {
    "lactok": ("lactok",),
    "baselines": ("lactok", "baselines"),
    "evals": (
        "evals",
        "lactok.interface",
        "lactok.items",
        "lactok.images",
        "lactok.files",
        "lactok.pipes",
        "lactok.progress",
        "lactok.registry",
        "lactok.weights",
        "lactok.feature_extractors",
        "lactok.conformance",
        "lactok.seeded",
        "lactok.state_dict",
        "lactok.typed",
        "lactok.data.scene_check",
        "lactok.data.scenes",
    ),
}
# Modules that a report or a list needs: they must not pull torch in.
LIGHT = [
    "evals",
    "lactok",
    "lactok.loaded",
    "lactok.targets",
    "evals.cli.selftest",
    "evals.cli.options",
    "evals.evaluation",
    "evals.run",
    "evals.config",
    "evals.record",
    "evals.engine.store",
    "evals.report.markdown",
    "evals.report.console",
    "evals.datasets.registry",
    "evals.metrics.plan",
    "evals.datasets.images.verify",
    "evals.datasets.images.make_flux",
    "evals.datasets.prompts.prompts",
    "evals.cli.score",
    "evals.cli.runs",
    "lactok.images.folder",
    "lactok.images.pairing",
    "lactok.files",
    "lactok.progress",
    "lactok.registry",
    "lactok.weights",
    "lactok.train.__main__",
    "lactok.data.scenes.__main__",
    "lactok.data.__main__",
    "lactok.data.construct.spec",
    "lactok.data.scene_check",
]


def imports_of(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [n for n in names if n.split(".")[0] in (*ALLOWED, "tests", "benchmarks")]


def permitted(name: str, allowed: tuple[str, ...]) -> bool:
    """Whether `name` is one of `allowed`, below one, or a package on the way to one ("from lactok import weights")."""
    return any(name == a or name.startswith(a + ".") or a.startswith(name + ".") for a in allowed)


@pytest.mark.parametrize("package", ALLOWED)
def test_import_directions(package: str):
    for path in (ROOT / package).rglob("*.py"):
        for name in imports_of(path):
            assert permitted(name, ALLOWED[package]), f"{path.relative_to(ROOT)} imports {name}"


def test_import_check_catches_a_wrong_direction():
    assert not permitted("baselines.tokenizers.llamagen", ALLOWED["lactok"])
    assert not permitted("lactok.models.vq", ALLOWED["evals"])
    assert not permitted("evals", ALLOWED["baselines"])


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_no_torch(module: str):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0, f"{module} imports torch"


def test_naming_tokenizers_imports_no_library_of_networks():
    """Lists and finished runs import every tokenizer's class; diffusers, transformers and timm take seconds."""
    code = (
        "import sys; from lactok import registry; "
        "[registry.load('tokenizers', name) for name in registry.entries('tokenizers')]; "
        "print([m for m in ('diffusers', 'transformers', 'timm', 'accelerate') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_importing_the_packages_costs_nothing():
    code = (
        "import sys; before = set(sys.modules); import lactok, evals; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "['evals', 'lactok']", done.stdout + done.stderr


@pytest.mark.parametrize(
    "command",
    [["evals.run"], ["evals"], ["evals", "selftest"], ["lactok.train"], ["lactok.data"], ["lactok.data.scenes"]],
)
def test_help_answers_at_once(command: list[str]):
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert len(done.stdout) > 300
    assert time.perf_counter() - started < 1.5


def test_ruff():
    for arguments in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *arguments, "."], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_holds_more_than_it_should():
    for package in ALLOWED:
        for path in (ROOT / package).rglob("*.py"):
            lines = len(path.read_text().splitlines())
            assert lines <= 500, f"{path.relative_to(ROOT)} has {lines} lines: split it by concept"


def registered_names() -> set[str]:
    """Of models, calibration rows, metrics and data sets, as pyproject.toml lists ours, and of suites."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    groups = ("tokenizers", "generators", "calibration", "metrics", "datasets")
    names = set(suites()) | {name for group in groups for name in points.get(f"lactok.{group}", {})}
    assert {"llamagen-mini", "identity", "psnr", "photos", "recon"} <= names
    return names


def text_of(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, value) of every string literal but docstrings."""
    docs = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docs.add(first.value)
    strings = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return [(node.lineno, node.value) for node in strings if node not in docs]


def test_the_engine_knows_no_model_metric_dataset_or_suite_by_name():
    """Whatever is registered is run by what its class says, ours like another package's."""
    names = registered_names()
    found = [
        f"{path.name}:{line}: {value!r}"
        for path in sorted((ROOT / "evals" / "engine").glob("*.py"))
        for line, value in text_of(ast.parse(path.read_text()))
        if value in names
    ]
    assert found == []


def test_that_check_sees_a_name():
    assert text_of(ast.parse('def f():\n    "psnr"\n    return x == "psnr"')) == [(3, "psnr")]
