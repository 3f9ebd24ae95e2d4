"""Who may import whom (docs/architecture.md), held by walking the imports."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "ssd_algo"

# A part of the package -> the parts it may import.
ALLOWED = {
    "errors": set(),
    "whole_files": set(),
    "contract": {"errors", "whole_files"},
    "data": {"errors"},
    "model": {"errors", "whole_files", "data"},
    "inference": {"errors", "data", "model"},
    "evaluation": {"errors", "data", "model", "inference"},
    "training": {"errors", "whole_files", "contract", "data", "model", "inference", "evaluation"},
    "serving": {"errors", "contract", "data", "model", "inference"},
    "demo": {"data"},
    "cli_channels": {"errors", "contract", "training"},
    "cli_model": {
        "errors",
        "contract",
        "data",
        "model",
        "inference",
        "evaluation",
        "training",
        "serving",
        "cli_channels",
    },
    "cli_request": {"errors", "contract", "serving"},
    "cli": {
        "errors",
        "contract",
        "data",
        "model",
        "inference",
        "evaluation",
        "training",
        "serving",
        "demo",
        "cli_channels",
        "cli_model",
        "cli_request",
    },
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path, top_level_only: bool = False) -> set[str]:
    """Names of all modules that a file imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_parts_import_only_what_they_may(path: Path) -> None:
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("ssd_algo.")} - {"__version__"}
    assert ours <= ALLOWED[part(path)] | {part(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_mxnet_starts_at_model(path: Path) -> None:
    frameworks = {name for name in imported(path) if name.split(".")[0] in ("mxnet", "gluoncv")}
    if part(path) in ("errors", "contract", "data", "evaluation", "serving", "demo", "cli", "cli_request"):
        assert not frameworks


@pytest.mark.parametrize(
    "module", ["training.job", "serving.server", "serving.app", "cli", "model.artifact", "inference.engines"]
)
def test_mxnet_is_not_imported_with(module: str) -> None:
    code = f"import sys, ssd_algo.{module}; sys.exit('mxnet' in sys.modules or 'gluoncv' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("module", ["training.job", "training.loop", "cli", "evaluation.report", "data.show"])
def test_matplotlib_is_imported_where_it_plots(module: str) -> None:
    code = f"import sys, ssd_algo.{module}; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code]).returncode == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_environment_and_paths_of_the_platform_have_one_home(path: Path) -> None:
    text = path.read_text()
    name = str(path.relative_to(PACKAGE))
    assert "/opt/ml" not in text or name == "contract/container.py"
    # demo.py hands its own environment on to the commands that it starts.
    assert not re.search(r"os\.(environ|getenv)|from os import", text) or name in (
        "contract/container.py",
        "serving/server.py",
        "demo.py",
    )
    assert "model_algo_1" not in text or name == "model/artifact.py"
