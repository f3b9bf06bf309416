"""Plugins named by where they are, without an entry point: `./my_tok.py:MyTok` or `my_package.module:MyTok`."""

from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from lactok.registry import PROJECT, BrokenPlugin, UnknownName, is_installed, names_a_file


class _FromSource(SourceFileLoader):
    """Compiles the file as it stands: bytecode in __pycache__ is taken for current within a second of an edit."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def load(target: str) -> Any:
    """Import the file or module and return the attribute.

    A file is imported again when it, or a file beside it that it imports, has changed. Its folder joins `sys.path`: it
    imports what lies beside it. Raises UnknownName where there is no such file, module or attribute, BrokenPlugin where
    importing it raises.
    """
    where, _, attribute = target.rpartition(":")
    if not where or not attribute:
        raise UnknownName(f"{target!r}: expected FILE.py:CLASS or package.module:CLASS")
    module = _of_file(target, Path(where).expanduser()) if names_a_file(where) else _of_module(target, where)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UnknownName(f"{target}: {where} has no {attribute!r}; {_classes_of(module, attribute)}")
        found = getattr(found, part)
    return found


def own_files(target: str) -> dict[str, Path]:
    """The target's file under "", and by dotted name those that it imports, and they import, from its own folder.

    Of a module of a package, the folder that holds the package. Imports by other means than an import statement are not
    seen, nor are data files. {} for what is installed, or of this project, whose classes say what determines them.
    """
    where = target.rpartition(":")[0]
    if names_a_file(where):
        file = Path(where).expanduser().absolute()
        return {"": file, **_own_imports(file, file.parent, "")}
    file_name = getattr(sys.modules.get(where), "__file__", None)
    if file_name is None or where.partition(".")[0] in PROJECT or is_installed(Path(file_name).resolve()):
        return {}
    file = Path(file_name)
    is_package = file.name == "__init__.py"
    root = file.parents[where.count(".") + is_package]
    return {"": file, **_own_imports(file, root, where if is_package else where.rpartition(".")[0])}


_owners: dict[str, Path] = {}
"""Of all files loaded so far: the modules beside them that they import, by name. A name is one module in a process."""
_digests: dict[str, str] = {}
"""By module target, the digest of its files when it was first loaded: Python keeps the module as it was then."""


def _of_file(target: str, file: Path) -> ModuleType:
    file = file.absolute()
    if not file.is_file():
        raise UnknownName(f"{target}: {_no_file(file)}")
    if file.suffix != ".py":
        raise UnknownName(f"{target}: {file} is no Python file: expected a name that ends in .py")
    files = own_files(target)
    name = f"{re.sub(r'[^A-Za-z0-9_]', '_', file.stem)}_{_digest(files)}"
    if name in sys.modules:
        return sys.modules[name]
    _take_over(target, {dotted: path for dotted, path in files.items() if dotted})
    spec = importlib.util.spec_from_file_location(name, file, loader=_FromSource(name, str(file)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    folder = str(file.parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise BrokenPlugin(f"{target} can't be imported: {last_line(error)}") from error
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:  # for imports within its functions
            sys.path.append(folder)
    return module


def _take_over(target: str, imports: dict[str, Path]) -> None:
    """Let the modules beside a file be imported anew. Raises BrokenPlugin where another file has one of their names."""
    for name, path in imports.items():
        loaded = getattr(sys.modules.get(name), "__file__", None)
        other = Path(loaded) if loaded else _owners.get(name)
        if (name in sys.modules or other) and (other is None or not _same(other, path)):
            raise BrokenPlugin(
                f"{target} imports {name} from {path}, but this process has a module {name} of {other or 'Python'}: "
                "rename one of them, or measure the two in commands of their own"
            )
    for name, path in imports.items():
        _owners[name] = path
        sys.modules.pop(name, None)
        with contextlib.suppress(OSError):  # bytecode is taken for current within a second of an edit
            Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)
    importlib.invalidate_caches()


def _of_module(target: str, where: str) -> ModuleType:
    try:
        module = importlib.import_module(where)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{where}.".startswith(f"{error.name}."):
            raise UnknownName(
                f"{target}: there is no module {error.name!r}, neither in the working folder {Path.cwd()} nor among "
                "the installed packages; name a file by its path: ./my_tok.py:MyTok"
            ) from error
        raise BrokenPlugin(f"{target} can't be imported: {last_line(error)}") from error
    digest = _digest(own_files(target))
    if _digests.setdefault(where, digest) != digest:
        raise BrokenPlugin(
            f"{target}: its files have changed since this process imported it, and Python keeps the module as it was: "
            "start a new process, or name the file by its path"
        )
    return module


def _digest(files: dict[str, Path]) -> str:
    """12 hex digits of where the files lie and what they hold."""
    content = [f"{name}\t{path}\n".encode() + path.read_bytes() for name, path in sorted(files.items())]
    return hashlib.sha256(b"\n".join(content)).hexdigest()[:12]


def _same(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve()


def last_line(error: BaseException) -> str:
    """The last line of the error's traceback, and where it was raised."""
    said = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SyntaxError):
        place = f"{error.filename}, line {error.lineno}"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    return f"{said} ({place})" if place else said


def _no_file(file: Path) -> str:
    beside = sorted(path.name for path in file.parent.glob("*.py")) if file.parent.is_dir() else []
    close = difflib.get_close_matches(file.name, beside, n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"no file {file}" + (hint if file.parent.is_dir() else f", nor a folder {file.parent}")


def _classes_of(module: ModuleType, wanted: str) -> str:
    names = [name for name, value in vars(module).items() if inspect.isclass(value) and _defined_in(value, module)]
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.4)
    return (f"did you mean {close[0]}? " if close else "") + f"its classes: {', '.join(names) or 'none'}"


def _defined_in(cls: type, module: ModuleType) -> bool:
    return cls.__module__ == module.__name__


def _own_imports(file: Path, root: Path, package: str) -> dict[str, Path]:
    """By dotted name, the files below `root` that `file`, a module of `package`, imports, and what these import."""
    found: dict[str, Path] = {}
    todo = [(file, package)]
    while todo:
        here, parent = todo.pop()
        for name in _imported(here, parent):
            for dotted, path in _below(root, name):
                if dotted not in found and not _same(path, file):
                    found[dotted] = path
                    todo.append((path, dotted if path.name == "__init__.py" else dotted.rpartition(".")[0]))
    return dict(sorted(found.items()))


def _imported(file: Path, package: str) -> Iterator[str]:
    """The dotted names that the import statements of a file may mean; none where it can't be parsed."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*filter(None, above), *([node.module] if node.module else [])])
            yield from filter(None, [base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)])


def _below(root: Path, name: str) -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of the modules below `root` that an import of `name` runs."""
    parts = name.split(".")
    if parts[0] in PROJECT:
        return
    for count in range(1, len(parts) + 1):
        place = root.joinpath(*parts[:count])
        for path in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if path.is_file():
                yield ".".join(parts[:count]), path
                break
