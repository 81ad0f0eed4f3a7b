"""The house rules: who may import whom, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import detrojan

ROOT = Path(detrojan.__file__).parent
# Each floor imports only from its own and from those before it.
FLOORS = [
    ["types", "scores", "errors", "options", "registry", "atomic"],
    ["models", "data"],
    [
        "metrics.consistency",
        "metrics.margin",
        "metrics.unlearning",
        "metrics.universal",
        "metrics.warps",
        "metrics.inversion",
        "metrics.recovery",
        "metrics.fixed_answers",
        "metrics.suspects",
        "training",
        "fitting",
    ],
    ["attacks", "defenses"],
    ["metrics", "utility", "proof", "results"],
    ["checks", "report"],
    [
        "manifest",
        "output",
        "prove",
        "language",
        "language_scan",
        "classification",
        "api",
        "demo",
        "demo_image",
        "bench",
        "listing",
        "terminal",
        "written",
    ],
    ["help", "commands", "cli"],
    ["__main__"],
]
RANKS = {room: rank for rank, rooms in enumerate(FLOORS) for room in rooms}


def module_name(path: Path) -> str:
    parts = [*path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(["detrojan", *(parts[:-1] if parts[-1] == "__init__" else parts)])


MODULES = {module_name(p): p for p in sorted(ROOT.rglob("*.py"))}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def walk(node: ast.AST, functions: bool) -> list[ast.AST]:
    """List the nodes below, without TYPE_CHECKING blocks and, if asked, without function bodies."""
    found = []
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            continue
        if not functions and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        found += [child, *walk(child, functions)]
    return found


@cache
def imports(module: str, functions: bool = True) -> frozenset[str]:
    """Return the modules of detrojan that a module imports."""
    path, found = MODULES[module], set()
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in walk(ast.parse(path.read_text(encoding="utf-8")), functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names = {f"{source}.{alias.name}" for alias in node.names}
            found |= {n if n in MODULES else source for n in names}
    return frozenset(n for n in found if n.partition(".")[0] == "detrojan")


def rank(module: str) -> int:
    name = module.removeprefix("detrojan").removeprefix(".")
    while name and name not in RANKS:
        name = name.rpartition(".")[0]
    return RANKS[name] if name else -1


def reachable(module: str) -> set[str]:
    """Return everything that a module pulls in, also from inside its functions."""
    seen, todo = set(), [module]
    while todo:
        for name in imports(todo.pop()):
            if name not in seen:
                seen.add(name)
                todo += [name] if name in MODULES else []
    return seen


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("detrojan.defenses")])
def test_a_defense_sees_no_attack(module: str) -> None:
    known = reachable(module)
    rooms = ("attacks", "api", "demo", "metrics.asr", "cli", "commands", "prove", "proof")
    forbidden = tuple(f"detrojan.{room}" for room in rooms)
    assert not [m for m in known if m.startswith(forbidden)]


@pytest.mark.parametrize("module", [m for m in MODULES if m != "detrojan"])
def test_every_module_has_a_floor(module: str) -> None:
    assert rank(module) >= 0, f"{module}: say in FLOORS where it belongs"


@pytest.mark.parametrize("module", [m for m in MODULES if m != "detrojan"])
def test_import_order(module: str) -> None:
    above = sorted(m for m in imports(module, functions=False) if rank(m) > rank(module))
    assert not above, f"{module} imports {above}, which stand above it"


def test_the_root_imports_nothing_heavy() -> None:
    assert imports("detrojan", functions=False) == {"detrojan.errors"}


def test_the_reader_of_imports_reads_them() -> None:
    assert "detrojan.options" in imports("detrojan.registry")
    assert {"detrojan.manifest", "detrojan.registry"} <= imports("detrojan.language")
    assert "detrojan.training" in imports("detrojan.defenses.finetune")
    assert "detrojan.training" not in imports("detrojan.defenses.finetune", functions=False)
    assert "detrojan.attacks.text.triggers" in reachable("detrojan.api")


@pytest.mark.parametrize(
    "what", ["import detrojan", "import detrojan.cli", "import detrojan; detrojan.InputError"]
)
def test_importing_is_cheap(what: str) -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'peft', 'datasets', 'matplotlib', 'scipy'}"
    code = f"import sys\n{what}\nprint(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("more", ["", ", steps=3"])
def test_a_wrong_path_is_told_before_the_heavy_imports(more: str) -> None:
    code = (
        "import sys\nfrom detrojan import api\n"
        f"try:\n    api.clean('./nowhere'{more})\nexcept api.InputError:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("name", detrojan.__all__)
def test_public_names_are_there(name: str) -> None:
    assert getattr(detrojan, name).__name__ == name


def test_unknown_public_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'claen'"):
        detrojan.claen  # noqa: B018
