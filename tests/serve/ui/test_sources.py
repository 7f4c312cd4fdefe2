"""What can be said of the page's files without a browser: policy, languages, licences, sizes, and that nothing points elsewhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

UI = Path(__file__).resolve().parents[3] / "kiloq" / "serve" / "ui"
MODULES = sorted((UI / "src").glob("*.js"))
OWN = [UI / "index.html", UI / "style.css", UI / "icon.svg", UI / "vendor_entry.js", *MODULES]
NAMESPACES = {"http://www.w3.org/2000/svg"}  # names, never fetched
MAX_LINES = 300
# One entry of strings.js: name: ["English", "Chinese"], with any escaped character inside the quotes.
ENTRY = re.compile(r'^  (\w+): \["((?:[^"\\]|\\.)*)", "((?:[^"\\]|\\.)*)"\],$')


def strings() -> dict[str, tuple[str, str]]:
    lines = (UI / "src" / "strings.js").read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("const STRINGS"))
    body = lines[start + 1 : lines.index("};", start)]
    entries = [ENTRY.match(line) for line in body if not line.startswith("  //")]
    assert all(entries), "every line of the table is one sentence in two languages"
    found = {entry[1]: (entry[2], entry[3]) for entry in entries if entry}
    assert len(found) == len(entries), "a name is used twice"
    return found


class Inline(HTMLParser):
    """Collects what the policy forbids and what the page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.forbidden: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        self.forbidden += [f"{tag} {name}" for name in names if name.startswith("on") or name == "style"]
        if tag == "style" or (tag == "script" and "src" not in names):
            self.forbidden.append(tag)
        self.loaded += [names[name] or "" for name in ("src", "href") if name in names]


def test_the_shell_has_no_inline_code_and_loads_only_its_own_files() -> None:
    page = Inline()
    page.feed((UI / "index.html").read_text(encoding="utf-8"))
    assert page.forbidden == []
    assert {"/ui/style.css", "/ui/src/main.js", "/ui/vendor.js", "/ui/icon.svg"} == set(page.loaded)
    for path in page.loaded:
        assert (UI / path.removeprefix("/ui/")).is_file(), path


def test_both_languages_say_everything() -> None:
    for name, (english, chinese) in strings().items():
        assert english.strip() and chinese.strip(), name
        holes = [set(re.findall(r"\{\w+\}", text)) for text in (english, chinese)]
        assert holes[0] == holes[1], f"{name}: the languages fill in different values"


def test_every_sentence_that_is_asked_for_exists_and_is_used() -> None:
    table = strings()
    sources = {path.name: path.read_text(encoding="utf-8") for path in MODULES if path.name != "strings.js"}
    asked = {name for text in sources.values() for name in re.findall(r'(?<![\w.])t\("(\w+)"', text)}
    assert asked <= set(table), f"not in strings.js: {asked - set(table)}"
    everything = "\n".join(sources.values())
    hints = {f"{name}Hint" for name in re.findall(r'^  \["(\w+)",', sources["request.js"], re.MULTILINE)}
    unused = {name for name in table if f'"{name}"' not in everything} - hints
    assert not unused, f"nobody says these: {unused}"


def test_libraries_are_listed_with_version_and_licence() -> None:
    package = json.loads((UI / "package.json").read_text(encoding="utf-8"))
    table = (UI / "VENDOR.md").read_text(encoding="utf-8")
    bundled = set(re.findall(r'from "([@\w.-]+)', (UI / "vendor_entry.js").read_text(encoding="utf-8")))
    assert bundled == set(package["devDependencies"]) - {"esbuild"}
    for name in bundled:
        version = package["devDependencies"][name]
        assert re.fullmatch(r"\d+\.\d+\.\d+", version), f"{name}: an exact version"
        assert re.search(rf"^\| {re.escape(name)} \| {re.escape(version)} \| \S", table, re.MULTILINE), name
    locked = json.loads((UI / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    assert {name: locked[f"node_modules/{name}"]["version"] for name in bundled} == {
        name: package["devDependencies"][name] for name in bundled
    }


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_sources_point_nowhere_else(path: Path) -> None:
    found = set(re.findall(r"(?:https?|wss?)://[^\s\"'`<>)]+", path.read_text(encoding="utf-8")))
    assert found <= NAMESPACES


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_modules_are_small_open_with_a_paragraph_and_use_no_shortcut_to_html(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.match(r"/\*\*?\n \* \S", text)
    assert len(text.splitlines()) < MAX_LINES
    for shortcut in ("innerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "setHTMLUnsafe"):
        assert shortcut not in text
    assert ("outerHTML" in text) <= (path.name == "markdown.js")  # read there, on its way through DOMPurify


def test_no_packages_lie_in_the_folder_that_is_installed() -> None:
    root = Path(__file__).resolve().parents[3]
    assert "node_modules/" in (root / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert not (UI / "node_modules").exists(), "remove kiloq/serve/ui/node_modules: a wheel must not contain it"
