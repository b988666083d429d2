"""What a serving process imports stays light; what the command line imports stays fast."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"duckdb", "pandas", "sklearn", "typer", "rich", "jinja2", "scipy", "pydantic"}
# Who may import whom, below the command line.
ALLOWED = {
    "core": set(),
    "profiler": {"core"},
    "costmodel": {"core", "profiler"},
    "routing": {"core", "costmodel"},
    "runtime": {"core", "costmodel", "routing"},
}


def modules_after(*imports: str) -> set[str]:
    code = "import json, sys\n" + "".join(f"import {name}\n" for name in imports)
    code += "print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return {name.split(".")[0] for name in json.loads(done.stdout)}


def test_a_serving_process_loads_nothing_heavy() -> None:
    loaded = modules_after("costprof.runtime", "costprof.routing", "costprof.costmodel.table")
    assert "torch" in loaded
    assert loaded & HEAVY == set()


def test_a_serving_process_does_not_load_what_chooses_measurements() -> None:
    code = "import costprof.runtime, costprof.routing, costprof.runtime.kernel_choice, sys\n"
    code += "chooses = ('costmodel.acquisition', 'costmodel.tile_')\n"
    code += "print([name for name in sys.modules if any(each in name for each in chooses)])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_the_physics_and_the_words_load_nothing_heavy() -> None:
    loaded = modules_after("costprof.core.device", "costprof.core.work", "costprof.core.files")
    assert loaded & (HEAVY | {"torch", "numpy", "pyarrow"}) == set()
    assert modules_after("costprof.costmodel.physics") & HEAVY == set()


def test_the_command_line_starts_without_the_libraries_of_its_verbs() -> None:
    loaded = modules_after("costprof.cli.main")
    assert loaded & {"duckdb", "pandas", "sklearn", "torch", "pyarrow", "jinja2", "pydantic"} == (
        set()
    )


@pytest.mark.parametrize("package", ALLOWED)
def test_each_package_imports_only_what_it_may(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                parts = name.split(".")
                if parts[0] == "costprof" and len(parts) > 1 and parts[1] != package:
                    assert parts[1] in ALLOWED[package], f"{path} imports {name}"
