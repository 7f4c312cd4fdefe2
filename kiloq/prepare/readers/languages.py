"""The programming language of a file: by its name, its ending, or the first line of a script.

Endings that are of several languages have the commonest one (.h is C, .m is Objective-C, .v is Verilog). Source: the
names and endings of GitHub's Linguist, for the languages of The Stack that are written by hand as programs.
"""

from __future__ import annotations

import re

# language -> endings
LANGUAGES = {
    "Ada": "adb ads",
    "Assembly": "asm s",
    "Batchfile": "bat cmd",
    "C": "c h",
    "C#": "cs csx",
    "C++": "cc cpp cxx c++ hh hpp hxx inl ipp",
    "CMake": "cmake",
    "CSS": "css less scss",
    "Clojure": "clj cljc cljs",
    "Common Lisp": "lisp lsp cl",
    "Cuda": "cu cuh",
    "Dart": "dart",
    "Elixir": "ex exs",
    "Elm": "elm",
    "Emacs Lisp": "el",
    "Erlang": "erl hrl",
    "F#": "fs fsi fsx",
    "Fortran": "f f77 f90 f95 f03 f08 for",
    "GLSL": "glsl vert frag",
    "Go": "go",
    "Groovy": "groovy gradle",
    "Haskell": "hs lhs",
    "Java": "java",
    "JavaScript": "js cjs mjs jsx",
    "Julia": "jl",
    "Kotlin": "kt kts",
    "Lean": "lean",
    "Lua": "lua",
    "MATLAB": "matlab",
    "Makefile": "mk mak",
    "Nim": "nim",
    "Nix": "nix",
    "OCaml": "ml mli",
    "Objective-C": "m mm",
    "PHP": "php",
    "Pascal": "pas pp",
    "Perl": "pl pm t",
    "PowerShell": "ps1 psm1 psd1",
    "Prolog": "pro prolog",
    "Protocol Buffer": "proto",
    "Python": "py pyi pyw pyx",
    "R": "r",
    "Racket": "rkt",
    "Ruby": "rb rake gemspec",
    "Rust": "rs",
    "SQL": "sql",
    "Scala": "scala sbt sc",
    "Scheme": "scm ss sld",
    "Shell": "sh bash zsh ksh fish",
    "Solidity": "sol",
    "Swift": "swift",
    "SystemVerilog": "sv svh",
    "TeX": "tex sty cls",
    "Tcl": "tcl",
    "Thrift": "thrift",
    "TypeScript": "ts tsx mts cts",
    "VHDL": "vhd vhdl",
    "Verilog": "v vh",
    "Vim Script": "vim",
    "Visual Basic": "vb bas",
    "Vue": "vue",
    "Zig": "zig",
}
NAMES = {
    "makefile": "Makefile",
    "gnumakefile": "Makefile",
    "cmakelists.txt": "CMake",
    "dockerfile": "Dockerfile",
    "containerfile": "Dockerfile",
    "rakefile": "Ruby",
    "gemfile": "Ruby",
    "jenkinsfile": "Groovy",
    "sconstruct": "Python",
    "build.bazel": "Starlark",
    "vimrc": "Vim Script",
}
INTERPRETERS = {
    "python": "Python", "pypy": "Python", "bash": "Shell", "sh": "Shell", "zsh": "Shell", "dash": "Shell",
    "ksh": "Shell", "fish": "Shell", "perl": "Perl", "ruby": "Ruby", "node": "JavaScript", "deno": "TypeScript",
    "php": "PHP", "lua": "Lua", "rscript": "R", "tclsh": "Tcl", "awk": "Awk", "gawk": "Awk", "julia": "Julia",
    "groovy": "Groovy", "make": "Makefile", "runhaskell": "Haskell", "escript": "Erlang", "elixir": "Elixir",
}  # fmt: skip

_BY_ENDING = {f".{ending}": language for language, endings in LANGUAGES.items() for ending in endings.split()}
CODE_ENDINGS = tuple(_BY_ENDING)
_SHEBANG = re.compile(r"#![ \t]*(?:\S*/)?(?:env[ \t]+(?:-\S+[ \t]+)*)?([A-Za-z]+)")


def is_code(name: str) -> bool:
    """Whether a file can be program code by its name; one without an ending may be a script."""
    last = name.rpartition("/")[2].lower()
    return last in NAMES or "." not in last or last.endswith(CODE_ENDINGS)


def language_of(name: str, head: str) -> str | None:
    """The language of a file with this name and these first characters; None if it is not known."""
    last = name.rpartition("/")[2].lower()
    by_name = NAMES.get(last) or _BY_ENDING.get("." + last.rpartition(".")[2] if "." in last else "")
    if by_name is None and (found := _SHEBANG.match(head)):
        return INTERPRETERS.get(found[1].lower())
    return by_name
