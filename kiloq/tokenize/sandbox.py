"""Jinja for templates from strangers: no calls but a few, no attributes but a few, and bounded time and memory.

Jinja's own sandbox stops a template from reaching Python's internals, but not from running for ever or filling the
memory ("a" * 10**9, "%9999999999d", doubling a string 40 times, nested loops). Here every operation that makes
something longer pays from one allowance, filters, methods and globals are allow-lists, and the template's code runs
under a trace function that looks at the clock after each bytecode. Source of the allow-lists: what the chat templates
of published models use.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import wraps
from types import FrameType
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

DEADLINE_S = 1.5  # ours; published templates take milliseconds
ALLOWANCE_CHARS = 64 << 20  # ours; for everything a rendering makes, on top of INPUT_SHARE times the messages
INPUT_SHARE = 64  # ours; a template that copies every message often, in a loop over messages, still passes
ITEM_CHARS = 16  # bytes that an item of a list takes, and the allowance is paid for it
MAX_RANGE = 100_000  # items; jinja2.sandbox.MAX_RANGE
MAX_BITS = 4096  # of an integer
FILE_NAME = "<chat template>"

FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items", "join", "last",
    "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "safe", "select",
    "selectattr", "sort", "string", "sum", "title", "trim", "unique", "upper",
)  # fmt: skip
METHODS: dict[type, set[str]] = {
    str: {"capitalize", "count", "endswith", "find", "index", "isalpha", "isdigit", "isspace", "join", "lower",
          "lstrip", "removeprefix", "removesuffix", "replace", "rfind", "rsplit", "rstrip", "split", "splitlines",
          "startswith", "strip", "title", "upper"},
    dict: {"get", "items", "keys", "values"},
    list: {"count", "index"},
    tuple: {"count", "index"},
}  # fmt: skip


class Sandbox(ImmutableSandboxedEnvironment):
    """One rendering: its allowance of characters and its deadline are used up by it."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, input_chars: int) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        self._left = ALLOWANCE_CHARS + INPUT_SHARE * input_chars
        self._stop_at = 0.0
        self.concat = self._concat  # type: ignore[method-assign]  # joins output, macros and blocks
        self.filters = {name: self._paying(JINJA_FILTERS[name]) for name in FILTERS}
        self.filters |= {
            "tojson": self._tojson,
            "indent": self._indent,
            "concatenated": self._concat,
            "sliced": self._sliced,
        }
        self.globals = {
            "namespace": self.globals["namespace"],
            "range": self._range,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def render_text(self, source: str, variables: Mapping[str, Any]) -> str:
        """The rendered template. Raises jinja2.TemplateError, and what Python raises for wrong operands."""
        self._stop_at = time.monotonic() + DEADLINE_S
        tree = _Paying().visit(self.parse(source, FILE_NAME, FILE_NAME))
        code = self.compile(tree, FILE_NAME, FILE_NAME)
        template = self.template_class.from_code(self, code, self.make_globals(None))
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            return template.render(variables)
        finally:
            sys.settrace(before)

    # Time

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != FILE_NAME:
            return None
        frame.f_trace_opcodes = True
        self._check_time()
        return self._trace

    def _check_time(self) -> None:
        if time.monotonic() > self._stop_at:
            raise SecurityError(f"it runs for more than {DEADLINE_S} s")

    # Memory

    def _pay(self, value: Any) -> Any:
        """`value`, after taking its length from the allowance."""
        if isinstance(value, (str, list, tuple, dict)):
            self._spend(len(value) * (1 if isinstance(value, str) else ITEM_CHARS))
        return value

    def _spend(self, chars: int) -> None:
        self._check_time()
        self._left -= chars
        if self._left < 0:
            raise SecurityError("it makes more text than a prompt can need")

    def _concat(self, parts: Iterable[Any]) -> str:
        texts = []
        for part in parts:
            texts.append(str(part))
            self._spend(len(texts[-1]))
        return "".join(texts)

    def _paying(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)  # keeps the mark that tells Jinja to pass the environment
        def paying(*args: Any, **kwargs: Any) -> Any:
            if function in (JINJA_FILTERS["replace"], JINJA_FILTERS["join"]):
                self._pay_for_copies(args)
            return self._pay(function(*args, **kwargs))

        return paying

    def _pay_for_copies(self, args: tuple[Any, ...]) -> None:
        """replace and join can put one argument between all characters of another: pay for the worst case."""
        lengths = sorted(len(value) for value in args if isinstance(value, (str, list, tuple)))
        self._spend(sum(lengths) + (lengths[-1] + 1) * lengths[-2] if len(lengths) > 1 else sum(lengths))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`left operator right`, if the result is of sane size."""
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (right if operator == "**" else 1) + right.bit_length()
            if bits > MAX_BITS:
                raise SecurityError(f"it computes a number of more than {MAX_BITS} bits")
        elif operator == "%" and isinstance(left, str):
            raise SecurityError("it formats text with %, which chat templates do not need")
        elif operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(text, (str, list, tuple)) and isinstance(times, int):
                    self._spend(len(text) * max(times, 0) * (1 if isinstance(text, str) else ITEM_CHARS))
        return self._pay(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str) and obj.__name__ in ("replace", "join"):
            self._pay_for_copies((owner, *args))
        return self._pay(super().call(context, obj, *args, **kwargs))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Only the methods above, and fields of Jinja's own loop and namespace objects."""
        for kind, names in METHODS.items():
            if isinstance(obj, kind):
                return attr in names
        return not attr.startswith("_") and type(obj).__module__.startswith("jinja2.")

    def is_safe_callable(self, obj: Any) -> bool:
        """Methods that passed `is_safe_attribute`, macros, and the four globals."""
        owner = getattr(obj, "__self__", None)
        return (
            any(obj is value for value in self.globals.values())
            or isinstance(obj, (Macro, LoopContext))
            or isinstance(owner, (*METHODS, LoopContext))
        )

    # Filters and globals of our own

    def _range(self, *args: int) -> range:
        items = range(*args)
        if len(items) > MAX_RANGE:
            raise SecurityError(f"it counts to {len(items):,}: at most {MAX_RANGE:,}")
        return items

    def _sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        return self._pay(value[start:stop:step])

    def _tojson(self, value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        text = json.dumps(value, ensure_ascii=bool(ensure_ascii), indent=min(indent, 8) if indent else None)
        return str(self._pay(text))

    def _indent(self, text: str, width: int = 4, first: bool = False, blank: bool = False) -> str:
        if not isinstance(width, int) or width > 64:
            raise SecurityError("it indents by more than 64")
        self._spend(len(text) * (max(width, 0) + 1))
        return str(JINJA_FILTERS["indent"](text, width, first, blank))


class _Paying(NodeTransformer):
    """Puts paying filters in the places of `a ~ b` and `a[b:c]`, which Jinja does without asking the environment."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "concatenated", [])

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        return _filter(node.node, "sliced", [bound or nodes.Const(None, lineno=node.lineno) for bound in bounds])


def _filter(node: nodes.Expr, name: str, arguments: list[nodes.Expr]) -> nodes.Filter:
    return nodes.Filter(node, name, arguments, [], None, None, lineno=node.lineno)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(str(message))


def _strftime_now(form: str) -> str:
    if len(form) > 64:
        raise SecurityError("it formats a date with more than 64 characters")
    return datetime.now().strftime(form)
