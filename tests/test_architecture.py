"""The order of the rooms, and what each may import."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import wvmonitor

PACKAGE = Path(wvmonitor.__file__).parent

# Top to bottom: a room imports only from rooms below it, or from itself (design, section 2).
ROOMS = [
    "cli",
    "testing",
    "organism",
    "integrations",
    "evals",
    "builder",
    "scan",
    "live",
    "report",
    "steering",
    "outputs",
    "journal",
    "sources",
    "references",
    "files",
    "detection",
    "vectors",
    "reading",
    "errors",
]
# The front door re-exports every room lazily, and the version is a number.
OUTSIDE = {"__init__", "__main__", "_version"}
# What every room may take from it: the version, and how a package imports its names lazily.
OF_THE_FRONT_DOOR = {"_version", "lazily"}
# Where names lived in 0.1: these import from the new place, and say so.
MOVED = {"monitor", "settings"}


def modules():
    """Every (dotted name inside the package, parsed file)."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts), ast.parse(path.read_text("utf-8"))


def imports(tree, module):
    """Every absolute name a file imports: anywhere in it, also for type checking only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative imports are not used"
            assert node.module is not None
            yield node.module, node.lineno
            if node.module == "wvmonitor":
                yield from ((f"wvmonitor.{alias.name}", node.lineno) for alias in node.names)


def offences(allowed):
    """(module:line, what it imports) for every import of the package's files not `allowed`."""
    return [
        f"{module}:{line} imports {target}"
        for module, tree in modules()
        for target, line in imports(tree, module)
        if not allowed(module, target)
    ]


def room_of(dotted):
    return dotted.split(".")[0]


def test_imports_point_down():
    """No room knows of a room above it, so that each can be read and used with what is below."""

    def allowed(module, target):
        home = room_of(module)
        if home in OUTSIDE | MOVED or not target.startswith("wvmonitor."):
            return True
        room = room_of(target.removeprefix("wvmonitor."))
        if room in OF_THE_FRONT_DOOR or room not in ROOMS:
            return room in OF_THE_FRONT_DOOR
        return ROOMS.index(room) >= ROOMS.index(home)

    assert offences(allowed) == []


def test_every_file_stands_in_a_room():
    """A new folder or file at the top is put into the order above, or is not there."""
    assert {room_of(module) for module, _ in modules()} - OUTSIDE - MOVED <= set(ROOMS)
    at_the_root = {path.stem for path in PACKAGE.glob("*.py")} - MOVED
    assert at_the_root == {*OUTSIDE, "errors", "reading", "testing"}


@pytest.mark.parametrize(
    ("room", "never"),
    [
        ("detection", ("torch", "transformers", "peft")),
        ("reading", ("torch", "transformers", "peft")),
        ("errors", ("torch", "numpy", "transformers", "peft")),
        ("vectors", ("transformers", "peft", "scipy", "safetensors")),
        ("references", ("transformers", "peft")),
        ("files", ("transformers", "peft", "pickle")),
    ],
)
def test_rooms_stay_light(room, never):
    """Judging needs no torch, and the algebra no Hugging Face."""

    def allowed(module, target):
        return room_of(module) != room or room_of(target) not in never

    assert offences(allowed) == []


def test_nothing_unpickles_weights():
    """No file of the package calls torch.load or imports pickle."""
    assert offences(lambda _, target: room_of(target) not in {"pickle", "dill", "joblib"}) == []
    calls = [
        f"{module}:{node.lineno}"
        for module, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr == "load"
        and isinstance(node.value, ast.Name)
        and node.value.id == "torch"
    ]
    assert calls == []


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import wvmonitor", {"torch", "transformers", "peft", "matplotlib", "scipy"}),
        (
            "from wvmonitor import TaskVector, Reference, ReferenceBank",
            {"transformers", "peft", "matplotlib", "scipy"},
        ),
        ("import wvmonitor.detection.scores", {"torch", "transformers", "peft", "matplotlib"}),
        ("from wvmonitor import steered", {"transformers", "peft", "matplotlib", "scipy"}),
    ],
)
def test_importing_stays_light(statement, heavy):
    """The front door and the algebra load no library that they do not use."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", statement],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    loaded = {
        room_of(line.rpartition("|")[2].strip())
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "wvmonitor" in loaded
    assert not loaded & heavy


def imported_names(tree):
    """(module, name, line) of every `from module import name` in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.module, alias.name, node.lineno


JUDGING = {
    ("wvmonitor.detection.scores", "score"),
    ("wvmonitor.detection.scores", "resolve_ridge"),
    ("wvmonitor.detection.verdict", "judge"),
    ("wvmonitor.detection.explanation", "explained"),
    ("wvmonitor.reading", "layer_shares"),
}


def test_only_the_judge_judges():
    """Scoring, passing verdicts and explaining them happens in one place, so that the same weights
    get the same verdict whichever way they come in.
    """
    found = [
        f"{module}:{line} imports {name}"
        for module, tree in modules()
        if room_of(module) != "detection"
        for home, name, line in imported_names(tree)
        if (home, name) in JUDGING
    ]
    assert found == []
    for home, name in JUDGING:
        assert hasattr(importlib.import_module(home), name), f"{home}.{name} has moved"


def test_no_files_import_each_other_in_a_circle():
    """Each file can be read from the bottom up: none needs itself, not even inside a function."""
    graph = {module.removesuffix(".__init__"): set() for module, _ in modules()}
    for module, tree in modules():
        home = module.removesuffix(".__init__")
        for package, name, _ in imported_names(tree):
            file = f"{package}.{name}".removeprefix("wvmonitor.")
            graph[home].add(file if file in graph else package.removeprefix("wvmonitor."))
        graph[home] &= graph.keys()
    assert [home for home in graph if home in reachable(graph, home)] == []


def reachable(graph, start):
    """Everything that a file needs, directly or not."""
    found, ahead = set(), list(graph[start])
    while ahead:
        module = ahead.pop()
        if module not in found:
            found.add(module)
            ahead += graph[module]
    return found


def test_a_judged_reading_is_a_judgement():
    """Whatever holds verdicts and scores side by side is a `Judgement`, or made from one."""
    holding = []
    for module, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                fields = {
                    item.target.id: ast.unparse(item.annotation)
                    for item in node.body
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
                }
                if {"scores", "verdicts"} <= set(fields):
                    holding.append(f"{module}.{node.name}")
    assert holding == ["detection.judgement.Judgement"]


def test_every_room_says_what_it_offers():
    """Each package names in `__all__` what is meant for others, and every name is there."""
    packages = [m.removesuffix(".__init__") for m, _ in modules() if m.endswith(".__init__")]
    for package in packages:
        room = importlib.import_module(f"wvmonitor.{package}")
        assert isinstance(room.__all__, list), package
        missing = [name for name in room.__all__ if not hasattr(room, name)]
        assert missing == [], package


def test_the_front_door_has_what_people_ask_for():
    """A scan, a calibration and a verdict are one import away; the room of scans is callable."""
    assert all(getattr(wvmonitor, name) is not None for name in wvmonitor.__all__)
    importlib.import_module("wvmonitor.scan.results")
    assert callable(wvmonitor.scan)
    assert wvmonitor.Judge is importlib.import_module("wvmonitor.detection.judge").Judge
