"""Who may import what, read from the source, and what really gets imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import expunge

ROOT = Path(expunge.__file__).parent
FILES = {
    ".".join(["expunge", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(
        ".__init__"
    ): path
    for path in sorted(ROOT.rglob("*.py"))
}
PURE = ("stats", "importance", "selection", "subspace", "plan", "metrics")
TOUCH_MODELS = (
    *("models", "sites", "collect", "experts", "edit", "evaluate", "attacks", "fiction", "tune"),
    *("encoding", "positions", "prefix", "trunk", "precision", "pictures"),
)
# What runs a stage, by the part it is in; other names there may be shared.
STAGES = {
    "collect": {"collect", "collect_statistics"},
    "edit": {"apply", "applied", "restore", "save_checkpoint"},
    "evaluate": {"evaluate"},
    "report": {"write_report"},
    "attacks": {"attack_run"},
}
# The pipeline, with what it lends to methods; the attack command, a pipeline of its own.
JOIN_STAGES = ("pipeline", "bench", "cli", "search", "attacks.run")
HEAVY = {"torch", "transformers", "safetensors", "datasets", "sklearn", "scipy", "peft"}


@cache
def imports(module):
    """(module, whether when this one is loaded, names taken from it) for each import in a module.

    What stands under `if TYPE_CHECKING` is left out, for it never runs.
    """
    found = []
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]

    def visit(node, outside):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child, outside)
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, outside, "*") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            for alias in node.names:
                below = f"{base}.{alias.name}"
                found.append(
                    (below, outside, "*") if below in FILES else (base, outside, alias.name)
                )
        inner = outside and not isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        )
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(ast.parse(FILES[module].read_text(encoding="utf-8")), True)
    return tuple(found)


def part(module):
    """The file or folder of the package that a module belongs to."""
    return (module.split(".") + ["__init__"])[1]


def tops(module, at_load_only=False):
    return {n.split(".")[0] for n, at_load, _ in imports(module) if at_load or not at_load_only}


def loaded_by(statement):
    """Top-level names of all modules that a fresh interpreter holds after a statement."""
    code = f"{statement}; import sys; print(*{{n.split('.')[0] for n in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split())


def test_the_reader_of_imports_reads_them():
    assert ("torch", True, "*") in imports("expunge.stats")
    assert ("expunge.edit", False, "apply") in imports("expunge.plan")
    assert ("expunge.errors", True, "InputError") in imports("expunge.sites.find")
    assert ("expunge.formats", True, "*") in imports("expunge.data")
    assert not any(at_load for name, at_load, _ in imports("expunge.data") if name == "PIL.Image")
    assert part("expunge.sites.find") == part("expunge.sites") == "sites"
    assert part("expunge") == "__init__"


def test_every_import_from_the_package_names_a_module_that_is_there():
    lost = {
        (module, name)
        for module in FILES
        for name, _, _ in imports(module)
        if name.split(".")[0] == "expunge" and name not in FILES
    }
    assert not lost


@pytest.mark.parametrize("name", PURE)
def test_pure_parts_never_import_transformers(name):
    members = [module for module in FILES if part(module) == name]
    assert members
    for module in members:
        assert "transformers" not in tops(module), module


def test_only_the_parts_that_touch_a_model_import_transformers():
    users = {part(module) for module in FILES if "transformers" in tops(module)}
    assert "models" in users
    assert users <= set(TOUCH_MODELS)


def test_the_report_imports_no_model_code():
    members = [module for module in FILES if part(module) == "report"]
    assert members
    for module in members:
        assert not tops(module) & {"torch", "transformers"}, module
        ours = {part(name) for name, _, _ in imports(module) if name.startswith("expunge")}
        assert not ours & set(TOUCH_MODELS), module


def test_only_the_pipeline_joins_stages():
    for module in FILES:
        if module.removeprefix("expunge.") in JOIN_STAGES or module == "expunge":
            continue
        run = {
            part(name)
            for name, _, taken in imports(module)
            if taken in (*STAGES.get(part(name), ()), "*") and part(name) in STAGES
        }
        assert len(run - {part(module)}) <= 1, f"{module} runs the stages {sorted(run)}"


def test_the_command_line_loads_no_stage_before_a_command_runs():
    members = [module for module in FILES if part(module) == "cli"]
    assert members
    late = {*STAGES, *TOUCH_MODELS, *PURE, "pipeline", "planning"}
    late |= {"methods", "compare", "search", "data"}
    for module in members:
        early = {
            part(n) for n, at_load, _ in imports(module) if at_load and n.startswith("expunge.")
        }
        assert not early & late, module
        assert not tops(module, at_load_only=True) & HEAVY, module


def test_modules_of_the_package_import_each_other_in_one_direction():
    """No cycle among imports that run when a module is loaded."""
    above: list[str] = []
    done: set[str] = set()

    def walk(module):
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module in done:
            return
        above.append(module)
        for name, at_load, _ in imports(module):
            if at_load and name in FILES and name != module:
                walk(name)
        above.pop()
        done.add(module)

    for module in FILES:
        walk(module)
    assert done == set(FILES)


def test_the_command_line_answers_without_torch():
    assert not loaded_by("import expunge.cli") & {"torch", "transformers", "numpy", "PIL"}


def test_the_package_and_the_report_load_neither_torch_nor_transformers():
    names = loaded_by("import expunge, expunge.data, expunge.config, expunge.report")
    assert "jinja2" in names
    assert not names & {"torch", "transformers"}


def test_pure_parts_load_no_transformers():
    statement = "import " + ", ".join(f"expunge.{name}" for name in PURE)
    names = loaded_by(statement)
    assert "torch" in names and "transformers" not in names
