"""Answers that must have a form: which tokens may come next, for JSON, a schema, an expression, a grammar or a choice.

    spec = ConstraintSpec.json_schema({"type": "object", ...})     checked and bounded (constrain_spec.py)
    compiler = Compiler(tokenizer, eos_ids, vocab_size)            one for a model
    constraint = compiler.compile(spec)                            one for an answer: UsageError, never free text
    logits_V = constraint.apply(logits_V); constraint.accept(token)     until constraint.done

llguidance does the work: an Earley parser over derivatives of regular expressions, which walks the vocabulary's bytes,
so that a letter may be spread over tokens. Around it: control tokens are no part of the vocabulary it sees, the end
tokens are allowed exactly where a text may end, what a stranger wrote is compiled in a child process first
(constrain_trial.py says why), and a mask that llguidance made after an error is never used.

Copies of a matcher share the states that its lexer has met. That makes the second answer fast, but they count
together towards the limit; so an answer whose lexer is full gets a new one, and the cache with it.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kiloq.core.errors import BusyError, KiloqError, UsageError
from kiloq.generate.constrain_spec import NAMES, ConstraintSpec
from kiloq.generate.constrain_vocabulary import ConstraintVocabulary, library
from kiloq.tokenize.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

__all__ = ["Compiler", "Constraint", "ConstraintSpec"]

# llguidance's limits; its defaults are for schemas of up to 4 MB. Measured on two cores with hostile forms of 64 KiB.
LIMITS = {
    "initial_lexer_fuel": 500_000,  # half the default: about 0.2 s and 50 MB
    "step_lexer_fuel": 200_000,  # the default: about 15 ms of one mask
    "step_max_items": 50_000,  # the default: about 3 ms of one mask
    "max_lexer_states": 50_000,  # a fifth of the default: 30 MB, and 12 KB of a string whose length is counted
    "max_grammar_size": 200_000,  # symbols; 2,000 optional properties, half a MB of JSON, have 100,000
    "max_items_in_row": 2_000,  # the default: 500 optional properties that may come next
}
# Work on a row grows with its square in an ambiguous grammar (start: start start | "a"): 2,000 items take over a
# second of a step, 500 take 0.07 s. Schemas are not ambiguous like that.
GRAMMAR_ITEMS_IN_ROW = 500

TRIAL = Path(__file__).with_name("constrain_trial.py")
TRIAL_DATA_BYTES = 160 << 20  # ours; Python and llguidance take 25 MB, ordinary schemas 1 to 20 MB more
MAX_TRIALS = 4  # ours; children at once, each with up to a core and TRIAL_DATA_BYTES
TRIAL_PATIENCE = 10  # ours; how many time limits a caller waits for its turn

CACHE_BYTES = 256 << 20  # ours; of all compiled forms together, as their trials measured it
RENEW_S = 0.25  # ours; a form that compiles slower than this is not compiled again between two tokens
RENEW_TOKENS = 256  # ours; an answer that fills a whole lexer with fewer tokens has a hostile form
MAX_REASON = 200  # characters of llguidance's reason in a sentence; it repeats whole expressions
TOO_MUCH = ("fuel", "too many", "too big", "too large", "too complex", "max is", "limit", "Unable to determine")


class Compiler:
    """Compiles forms for one model's vocabulary and keeps the last ones. Threads may share it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        eos_ids: Iterable[int],
        vocab_size: int,
        *,
        cache_entries: int = 64,
        timeout_s: float = 2.0,
    ) -> None:
        """Of the model: its tokenizer, the ids that end an answer, the width of its logits.

        timeout_s: of the trial of a form that a stranger wrote; ordinary ones take 0.1 s, once.
        """
        self._tokenizer = tokenizer
        self._eos_ids = frozenset(token for token in eos_ids if 0 <= token < vocab_size)
        self._vocab_size = vocab_size
        self._cache_entries = cache_entries
        self._timeout_s = timeout_s
        self._vocabulary: ConstraintVocabulary | None = None
        self._vocabulary_lock = threading.Lock()
        self._cache: OrderedDict[ConstraintSpec, _Form] = OrderedDict()
        self._cache_lock = threading.Lock()
        self._trials = threading.BoundedSemaphore(MAX_TRIALS)

    def compile(self, spec: ConstraintSpec) -> Constraint:
        """A constraint at its beginning, independent of all others.

        Raises UsageError when the form cannot be compiled, or not within the limits; BusyError when too many others
        are at it; MissingError without llguidance.
        """
        library()
        if not self._eos_ids:
            raise UsageError("the model has no end token, so that an answer's form cannot end: give eos_ids")
        with self._cache_lock:
            form = self._cache.get(spec)
            if form is not None:
                self._cache.move_to_end(spec)
        if form is None:
            form = self._make(spec)
            with self._cache_lock:
                self._keep(spec, form)
        return Constraint(form, form.matcher())

    def _make(self, spec: ConstraintSpec) -> _Form:
        vocabulary = self._built()  # not within the time of the trial
        limits = LIMITS | ({"max_items_in_row": GRAMMAR_ITEMS_IN_ROW} if spec.kind == "grammar" else {})
        grammar = _grammar(spec)
        tame = spec.kind in ("json_object", "choice")  # ours, or a list of bounded texts
        size = len(spec.text) if tame else self._try(spec, grammar, limits)
        return _Form(spec, grammar, limits, vocabulary, size)

    def _built(self) -> ConstraintVocabulary:
        with self._vocabulary_lock:
            if self._vocabulary is None:
                self._vocabulary = ConstraintVocabulary(self._tokenizer, self._eos_ids, self._vocab_size)
            return self._vocabulary

    def _try(self, spec: ConstraintSpec, grammar: str, limits: dict[str, int]) -> int:
        """Compiles `grammar` in a child process. Returns the bytes that it took there; UsageError if it could not."""
        if not self._trials.acquire(timeout=TRIAL_PATIENCE * self._timeout_s):
            raise BusyError(f"{MAX_TRIALS} answer forms are being compiled, no more at once: ask again in a moment")
        try:
            verdict = _trial(spec, grammar, limits, self._timeout_s)
        finally:
            self._trials.release()
        if verdict["error"]:
            raise _refused(spec, _reason(verdict["error"]))
        return int(verdict["bytes"])

    def _keep(self, spec: ConstraintSpec, form: _Form) -> None:
        self._cache[spec] = form
        self._cache.move_to_end(spec)
        while len(self._cache) > self._cache_entries or sum(kept.size for kept in self._cache.values()) > CACHE_BYTES:
            self._cache.popitem(last=False)


class Constraint:
    """One answer's place in its form. For one thread at a time."""

    def __init__(self, form: _Form, matcher: llguidance.LLMatcher, tokens: tuple[int, ...] = ()) -> None:
        self._form = form
        self._matcher = matcher
        self._tokens = list(tokens)  # of the text; an end token is not part of it
        self._renewed_at = -RENEW_TOKENS
        self._ended = False
        self._bits: NDArray[np.uint32] | None = None  # packed mask of the next token, once it is known

    def allowed(self) -> NDArray[np.bool_]:
        """Whether each token [vocab_size] may come next. UsageError when the form cannot be followed further."""
        return self._form.vocabulary.unpacked(self._mask())

    def apply(self, logits_V: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy of logits with -inf for all but the allowed tokens; rows beyond the vocabulary are never allowed."""
        allowed_V = self.allowed()[: len(logits_V)]
        masked_V = np.full(len(logits_V), -np.inf, np.float32)
        np.copyto(masked_V[: len(allowed_V)], logits_V[: len(allowed_V)], where=allowed_V)
        return masked_V

    def accept(self, token: int) -> None:
        """The answer goes on with `token`. KiloqError when the form does not allow it, or UsageError: cannot be followed."""
        vocabulary = self._form.vocabulary
        if token in vocabulary.eos_ids and (self._ended or self._accepting()):
            self._ended, self._bits = True, None
            return
        if self._ended or not vocabulary.is_text(token):
            raise KiloqError(f"the token {token} is not allowed here by the {self._name}: take one that is")
        if not self._matcher.consume_token(token):
            self._renew()
            if not self._matcher.consume_token(token):
                raise self._failure()
        self._tokens.append(token)
        self._bits = None

    @property
    def done(self) -> bool:
        """Whether nothing but an end token may follow."""
        if self._ended or self._stopped():
            return True
        return self._accepting() and not (self._mask() & self._form.vocabulary.text_bits).any()

    def fork(self) -> Constraint:
        """A copy at the same place, for another answer to the same prompt."""
        copy = Constraint(self._form, self._matcher.deep_copy(), tuple(self._tokens))
        copy._renewed_at, copy._ended, copy._bits = self._renewed_at, self._ended, self._bits
        return copy

    @property
    def _name(self) -> str:
        return NAMES[self._form.spec.kind]

    def _stopped(self) -> bool:
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def _accepting(self) -> bool:
        return self._matcher.is_accepting()

    def _mask(self) -> NDArray[np.uint32]:
        if self._bits is None:
            vocabulary = self._form.vocabulary
            if self._ended or self._stopped():
                self._bits = vocabulary.eos_bits
            else:
                bits = vocabulary.next_bits(self._matcher)
                if bits is None:
                    self._renew()
                    bits = vocabulary.next_bits(self._matcher)
                if bits is None or not bits.any():
                    raise self._failure()
                self._bits = bits
        return self._bits

    def _renew(self) -> None:
        """Goes on with a lexer of its own, if that can help: the one it shared may have been filled by others."""
        form = self._form
        if form.build_s > RENEW_S or len(self._tokens) - self._renewed_at < RENEW_TOKENS:
            raise self._failure()
        self._matcher = form.renewed()
        self._renewed_at = len(self._tokens)
        if not self._matcher.consume_tokens(self._tokens):
            raise self._failure()

    def _failure(self) -> UsageError:
        return UsageError(
            f"the answer cannot follow the {self._name} beyond its first {len(self._tokens)} tokens: simplify the form"
        )


class _Form:
    """A compiled form: a matcher at the beginning, copied for every answer."""

    def __init__(
        self, spec: ConstraintSpec, grammar: str, limits: dict[str, int], vocabulary: ConstraintVocabulary, size: int
    ) -> None:
        self.spec = spec
        self.vocabulary = vocabulary
        self.size = size  # bytes
        self._grammar = grammar
        self._limits = limits
        start = time.perf_counter()
        self._first = self._compiled()
        self.build_s = time.perf_counter() - start

    def _compiled(self) -> llguidance.LLMatcher:
        guidance = library()
        limits = guidance.LLParserLimits(**self._limits, verbose_errors=False)
        matcher: llguidance.LLMatcher = guidance.LLMatcher(
            self.vocabulary.library_tokenizer, self._grammar, log_level=0, limits=limits
        )
        if matcher.is_error():
            raise _refused(self.spec, _reason(matcher.get_error()))
        bits = self.vocabulary.next_bits(matcher)
        if bits is None:
            raise _refused(self.spec, _reason(matcher.get_error()))
        if not bits.any():
            raise _refused(self.spec, "no token of the vocabulary can begin it")
        return matcher

    def matcher(self) -> llguidance.LLMatcher:
        """A matcher at the beginning."""
        return self._first.deep_copy()

    def renewed(self) -> llguidance.LLMatcher:
        """A matcher at the beginning whose lexer has met nothing; later answers share it."""
        self._first = self._compiled()
        return self.matcher()


def _grammar(spec: ConstraintSpec) -> str:
    """The form as llguidance reads it."""
    if spec.kind == "regex":
        return str(library().LLMatcher.grammar_from_regex(spec.text))
    if spec.kind == "grammar":
        return _lark(spec.text)
    if spec.kind == "choice":  # one terminal, so that a thousand of them are one item of the parser
        return _lark("start: CHOICE\nCHOICE: " + " | ".join(map(json.dumps, json.loads(spec.text))))
    # Without a bound a small model may go on with white space until its tokens are spent.
    options = {"whitespace_pattern": r"[ \t]|\r?\n[ \t]{0,40}"}
    return json.dumps({"grammars": [{"json_schema": {**json.loads(spec.text), "x-guidance": options}}]})


def _lark(text: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": text}]})  # bare, a text in braces would be read as such a list


def _trial(spec: ConstraintSpec, grammar: str, limits: dict[str, int], timeout_s: float) -> dict[str, Any]:
    """The verdict of a child process on `grammar`. UsageError when it did not live to give one."""
    cpu_s = math.ceil(timeout_s)  # whole seconds; ends the child even when this process is killed first
    task = {"grammar": grammar, "limits": limits, "data_bytes": TRIAL_DATA_BYTES, "cpu_s": cpu_s}
    command = [sys.executable, "-P", str(TRIAL)]
    try:
        child = subprocess.run(
            command, check=False, input=json.dumps(task).encode(), capture_output=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        raise _refused(spec, f"compiling it takes more than {timeout_s:g} s") from None
    except OSError as error:
        raise KiloqError(f"no process can be started to try the {NAMES[spec.kind]} in: {error.strerror}") from None
    if child.returncode < 0:  # by a signal: stack overflow, memory that was refused
        raise _refused(spec, "it is too large or too deeply nested to be compiled")
    if child.returncode > 0:
        last = child.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise KiloqError(f"the process that tries the {NAMES[spec.kind]} failed: {_reason(''.join(last))}")
    verdict: dict[str, Any] = json.loads(child.stdout)
    return verdict


def _refused(spec: ConstraintSpec, reason: str) -> UsageError:
    return UsageError(f"the {NAMES[spec.kind]} cannot be used: {reason}: correct or simplify it")


def _reason(error: str) -> str:
    """llguidance's message as one short line: it may repeat the whole form, and say what is wrong at the end."""
    if error.startswith("NoExtension"):
        return "no text satisfies it"
    if error.startswith(("panic", "PanicException")):
        return "llguidance cannot compile it"
    if error.startswith("oneOf constraints"):  # it offers an option that is no one's to set here
        return "the parts of a oneOf do not plainly exclude each other, use anyOf"
    told = re.search(r"^error: (.+)", error, re.MULTILINE)
    line = told.group(1) if told else next(iter(error.strip().splitlines()), "")
    if any(sign in line for sign in TOO_MUCH):
        return "it is too complex"
    line = re.split(r"; following| *: +\(", line)[0]  # before lists of all names, and expressions written out
    line = "".join(letter if letter.isprintable() else " " for letter in line).strip()
    return line if len(line) <= MAX_REASON else line[: MAX_REASON - 3] + "..."
