"""The walls of the house: who may import whom, which library has one owner, and that imports do nothing."""

from __future__ import annotations

import ast
import fnmatch
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

# Rooms, what each may import of the others, and how many files it held when last counted: a number that may only grow,
# so that a check which finds no files cannot pass.
ROOMS = {
    "conf": (set(), 6),
    "data_pipeline": ({"conf"}, 30),
    "trainer": ({"conf", "data_pipeline"}, 30),
    "launch": ({"conf"}, 7),
}
STANDARD_LIBRARY_ONLY = ("conf/schema.py", "conf/check.py", "conf/exits.py", "conf/hardware.py", "conf/processes.py")
FORBIDDEN = {"launch": ("torch",)}
OWNERS = {
    "torch_xla": ("trainer/backend/xla/*",),
    "jax": ("trainer/backend/xla/*", "trainer/backend/splash.py", "trainer/plan/tpu/*", "trainer/export/jax.py"),
    "libtpu": ("trainer/backend/xla/*", "trainer/backend/splash.py", "trainer/plan/tpu/*", "trainer/export/jax.py"),
    "orbax": ("trainer/backend/xla/*", "trainer/backend/splash.py", "trainer/plan/tpu/*", "trainer/export/jax.py"),
    "keras": ("trainer/export/keras.py",),
    "keras_hub": ("trainer/export/keras.py",),
    "wandb": ("trainer/tracker/mirror.py",),
    "webdataset": ("data_pipeline/shards.py", "data_pipeline/reader.py"),
    "sentencepiece": ("data_pipeline/tokenizer.py",),
    "hydra": ("conf/compose.py", "launch/jobs.py", "*/__main__.py"),
    "omegaconf": ("conf/compose.py", "launch/jobs.py", "*/__main__.py"),
    "ray": ("data_pipeline/engine/ray.py",),
    "lm_eval": ("trainer/evaluate/*",),
}
# Loaded only where a job needs them: each takes seconds, opens devices, or is an extra that may be missing. A file may
# import one at its head when nothing else imports that file at its own head.
NEVER_AT_IMPORT = {
    "wandb", "torch_xla", "jax", "orbax", "keras", "keras_hub", "ray", "lm_eval", "transformers", "datasets",
    "resiliparse", "fastwarc", "trafilatura", "justext", "lxml",
}  # fmt: skip


def files_of(root: Path, room: str) -> list[Path]:
    return sorted((root / room).rglob("*.py"))


def imports_of(file: Path) -> Iterator[tuple[str, int]]:
    """Every absolute name a file imports, at its head or in a function, with the line."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative imports hide the arrows"
            yield node.module or "", node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from ((argument.value, node.lineno) for argument in node.args if isinstance(argument, ast.Constant))


def head_imports(file: Path) -> set[str]:
    """The packages that importing a file imports at once."""
    statements = ast.parse(file.read_text(encoding="utf-8")).body
    plain = {alias.name for node in statements if isinstance(node, ast.Import) for alias in node.names}
    return {
        package(name) for name in plain | {node.module or "" for node in statements if isinstance(node, ast.ImportFrom)}
    }


def package(name: str) -> str:
    return name.split(".", 1)[0]


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_between_rooms(root: Path, room: str) -> None:
    allowed, fewest = ROOMS[room]
    files = files_of(root, room)
    assert len(files) >= fewest
    wrong = [
        f"{file.relative_to(root)}:{line} imports {name}"
        for file in files
        for name, line in imports_of(file)
        if package(name) in {*ROOMS, *FORBIDDEN.get(room, ())} - allowed - {room}
    ]
    assert not wrong


@pytest.mark.parametrize("name", OWNERS)
def test_single_owner_of_library(root: Path, name: str) -> None:
    users = {
        str(file.relative_to(root))
        for room in ROOMS
        for file in files_of(root, room)
        if name in {package(imported) for imported, _ in imports_of(file)}
    }
    assert {user for user in users if not any(fnmatch.fnmatch(user, owner) for owner in OWNERS[name])} == set()


def test_schema_needs_the_standard_library_only(root: Path) -> None:
    """Any tool can read the keys of a job without this environment."""
    for file in STANDARD_LIBRARY_ONLY:
        if (root / file).exists():
            names = {package(name) for name, _ in imports_of(root / file)}
            assert names <= {*sys.stdlib_module_names, "conf"}, file


STATE = """
import importlib, json, logging, os, signal, sys, threading, warnings
modules = json.loads(sys.argv[1])
handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
environment, folder = dict(os.environ), os.getcwd()
for module in modules:
    importlib.import_module(module)
torch = sys.modules.get("torch")
rooms = tuple({module.split(".")[0] for module in modules})
ours = [logger for name, logger in logging.root.manager.loggerDict.items() if name.split(".")[0] in rooms]
print(json.dumps({
    "loaded": sorted(name for name in sys.modules if "." not in name),
    "root handlers": len(logging.root.handlers),
    "handlers of ours": sum(len(getattr(logger, "handlers", ())) for logger in ours),
    "process group": bool(torch) and torch.distributed.is_initialized(),
    "cuda": bool(torch) and torch.cuda.is_initialized(),
    "default dtype": str(torch.get_default_dtype()) if torch else "torch.float32",
    "threads": threading.active_count(),
    "signals": [number for number, handler in handlers.items() if signal.getsignal(number) is not handler],
    "folder moved": os.getcwd() != folder,
}))
"""


@pytest.mark.parametrize("room", ROOMS)
def test_imports_are_inert(root: Path, room: str, tmp_path: Path) -> None:
    """Importing every module of a room opens no device, group, log or thread, and writes nothing."""
    other_environment = root / "trainer" / "backend" / "xla"  # tests/xla imports it
    files = [
        file
        for file in files_of(root, room)
        if not NEVER_AT_IMPORT & head_imports(file) and other_environment not in file.parents
    ]
    assert len(files) >= ROOMS[room][1]
    names = [".".join(file.relative_to(root).with_suffix("").parts) for file in files]
    modules = [name.removesuffix(".__init__") for name in names]
    done = subprocess.run(
        [sys.executable, "-c", STATE, json.dumps(modules)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    state = json.loads(done.stdout)
    loaded = set(state.pop("loaded"))
    assert done.stderr == ""
    assert state == {
        "root handlers": 0,
        "handlers of ours": 0,
        "process group": False,
        "cuda": False,
        "default dtype": "torch.float32",
        "threads": 1,
        "signals": [],
        "folder moved": False,
    }
    assert loaded & NEVER_AT_IMPORT == set()
    assert list(tmp_path.iterdir()) == []
    if room in ("conf", "launch"):
        assert "torch" not in loaded


@pytest.mark.parametrize(
    "module", ["conf", "conf.schema", "data_pipeline.reader", "trainer.model.gemma", "launch.local"]
)
def test_our_warnings_are_errors(module: str) -> None:
    with pytest.raises(DeprecationWarning):
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module=module)


@pytest.mark.parametrize("module", ["configparser", "trainers.model", "launchpad", "torch.nn"])
def test_warnings_of_others_are_not_ours(module: str) -> None:
    with pytest.warns(DeprecationWarning, match="old"):
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module=module)
