"""The licence of program code: the tag in a file's head, else the licence file that lies nearest above it.

A licence file is recognised by sentences of its text that the others do not have, after everything but letters is
taken out of it; what is not recognised has no name, and is dropped where a recipe names licences. Sources: the SPDX
licence list 3.x for names and texts, SPDX specification 2.3, annex D and E, for tags and expressions.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

MAX_HEAD_CHARS = 4096  # of a file, in which a tag is looked for: ours
MAX_LICENSE_BYTES = 256 << 10  # of a licence file: ours; the GPL has 35 KB
FILE_NAMES = re.compile(r"(?:un)?licen[cs]e|copying|licen[cs]e[-.]\w+|copying\.\w+", re.IGNORECASE)

_TAG = re.compile(r"SPDX-License-Identifier:[ \t]{0,8}([A-Za-z0-9.+() \t-]{1,100})")
_GNU = "free software foundation"
# SPDX name -> sentences that all stand in the text, letters only; of those that begin at one place the upper one counts
TEXTS = (
    ("MPL-2.0", ("mozilla public license version", "incompatible with secondary licenses")),
    ("AGPL-3.0", ("gnu affero general public license version",)),
    ("LGPL-2.1", ("gnu lesser general public license version", "february")),
    ("LGPL-3.0", ("gnu lesser general public license version", "june")),
    ("GPL-2.0", ("gnu general public license version june", _GNU, "temple place")),
    ("GPL-2.0", ("gnu general public license version june", _GNU, "franklin street")),
    ("GPL-3.0", ("gnu general public license version june", _GNU)),
    ("Apache-2.0", ("apache license version", "terms and conditions for use reproduction and distribution")),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",)),
    ("PSF-2.0", ("python software foundation license version",)),
    ("ISC", ("permission to use copy modify and or distribute this software for any purpose with or without fee",)),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "endorse or promote products")),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms",)),
    ("MIT", ("permission is hereby granted free of charge to any person obtaining a copy", "without restriction")),
)


def tagged(text: str) -> str | None:
    """The SPDX expression in a file's head."""
    found = _TAG.search(text[:MAX_HEAD_CHARS])
    return " ".join(found[1].replace("*/", "").split()) if found else None


def recognised(text: str) -> str | None:
    """The SPDX name of a licence's text; of a file with several, because parts come from elsewhere, the first."""
    plain = " ".join(re.sub(r"[^a-z]+", " ", text.lower()).split())
    found = [(plain.find(texts[0]), name) for name, texts in TEXTS if all(text in plain for text in texts)]
    return min(found, key=lambda entry: entry[0])[1] if found else None


def allows(expression: str | None, wanted: Collection[str]) -> bool:
    """Whether a file under this expression may be kept: one side of an OR is enough, an AND needs all."""
    if expression is None:
        return False
    for choice in re.split(r"\s+OR\s+", expression.replace("(", " ").replace(")", " ").strip()):
        names = [name.strip() for name in re.split(r"\s+AND\s+", choice)]
        if all(_name(name) in wanted or name in wanted for name in names):
            return True
    return False


def _name(name: str) -> str:
    """GPL-2.0-only, GPL-2.0-or-later and GPL-2.0+ as GPL-2.0; an exception after WITH only adds permissions."""
    return re.sub(r"(?:-only|-or-later|\+)\Z", "", re.split(r"\s+WITH\s+", name)[0])


def nearest(root: Path, name: str, known: dict[str, str | None]) -> str | None:
    """The licence of the folder of `name`, or of the nearest one above it inside `root` that has one.

    `known` keeps the answers by folder, from one call to the next.
    """
    folder = name.rpartition("/")[0]
    if folder not in known:
        known[folder] = _in_folder(root / folder) or (nearest(root, folder, known) if folder else None)
    return known[folder]


def _in_folder(folder: Path) -> str | None:
    try:
        files = sorted(path for path in folder.iterdir() if FILE_NAMES.fullmatch(path.name))
        for path in files:
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as file:
                    text = file.read(MAX_LICENSE_BYTES).decode("utf-8", "replace")
                if name := recognised(text):
                    return name
    except OSError:
        return None  # a licence that cannot be read is none
    return None
