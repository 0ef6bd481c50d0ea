"""What the documentation says of the tests is true."""

import re
from pathlib import Path

import pytest

import wvmonitor

ROOT = Path(__file__).parent.parent


def test_every_test_that_a_page_names_exists():
    """A table that says which test holds what must not outlive the test."""
    tests = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
    }
    named = {
        name
        for page in (ROOT / "docs").rglob("*.md")
        for name in re.findall(r"`(test_\w+)`", page.read_text("utf-8"))
    }
    assert len(named) > 20
    assert named <= tests


def test_every_trap_is_on_its_page():
    """Each file of `tests/traps` is a row of docs/traps.md."""
    page = (ROOT / "docs" / "traps.md").read_text("utf-8")
    for path in (ROOT / "tests" / "traps").glob("test_*.py"):
        tests = re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
        assert any(f"`{name}`" in page for name in tests), path.name


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")], ids=str
)
def test_links_between_pages_lead_somewhere(page):
    """Relative links name files that are there."""
    for target in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_page_is_in_the_navigation():
    """A page that the site does not lead to is not read."""
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert pages == set(re.findall(r": ([\w/.-]+\.md)$", navigation, re.MULTILINE))


def test_what_the_package_exports_is_what_the_page_says():
    """The Python page names every public name, so that nobody has to read `__init__.py`."""
    page = (ROOT / "docs" / "reference" / "api.md").read_text("utf-8")
    said = page.partition("The others")[0]
    assert set(re.findall(r"`(\w+)`", said)) - {"wvmonitor"} == set(wvmonitor.__all__) - {
        "__version__"
    }


def test_files_that_pages_name_exist():
    """`wvmonitor/…`, `tests/…` and `benchmarks/…` in a page are files of the project."""
    for page in (ROOT / "docs").rglob("*.md"):
        for path in re.findall(
            r"`((?:wvmonitor|tests|benchmarks|examples)/[\w./-]+)`", page.read_text("utf-8")
        ):
            assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_commands_in_the_text_exist_with_their_options():
    """What stands as `wvmonitor …` in a sentence can be typed: the command, and each option."""
    import typer

    from wvmonitor.cli.app import application

    root = typer.main.get_command(application())
    named = 0
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for said in re.findall(r"`wvmonitor ([a-z][^`]*)`", page.read_text("utf-8")):
            command, rest = root, said.split()
            while rest and not rest[0].startswith("-") and hasattr(command, "commands"):
                assert rest[0] in command.commands, f"{page.name}: wvmonitor {said}"
                command, rest = command.commands[rest[0]], rest[1:]
            known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
            given = {w.split("=")[0] for w in rest if w.startswith("--")}
            if "trl" not in said.split()[:1]:  # the rest of that line is TRL's
                assert given <= known, f"{page.name}: wvmonitor {said}"
            named += 1
    assert named > 50
