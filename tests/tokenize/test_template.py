"""Chat templates: equal to transformers' rendering, safe from hostile authors and from hostile messages."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiloq.core.errors import FormatError, UsageError
from kiloq.tokenize.chatml import ChatML
from kiloq.tokenize.export import CHATML_TEMPLATE
from kiloq.tokenize.template import Template
from kiloq.tokenize.tokenizer import Tokenizer

TALK = [
    {"role": "system", "content": " Be kind. "},
    {"role": "user", "content": "\nWhat is <b> & 'c'?\n"},
    {"role": "assistant", "content": "Is it d?"},
    {"role": "user", "content": "  是 e  "},
]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Ädd <x>", "parameters": {"type": "object"}}}]

TEMPLATES = {
    "instruct": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %}{{ m['content'] | trim }}{{ eos_token }}{% endif %}{% endfor %}",
    "headers": "{% for m in messages %}{{ '<|extra_1|>' ~ m.role ~ '<|extra_2|>\n\n' ~ m.content | trim ~ '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|extra_1|>assistant<|extra_2|>\n\n' }}{% endif %}",
    "namespace and loop": "{% set ns = namespace(n=0) %}{% for m in messages if m.role != 'system' %}"
    "{% set ns.n = ns.n + 1 %}{{ ns.n }}. {{ m.content.strip() }}{{ '' if loop.last else '\n---\n' }}{% endfor %}",
    "tools": "{% if tools %}{{ tools | tojson }}\n{% for t in tools %}{{ t.function.name }}: {{ t | tojson(indent=2) }}"
    "{% endfor %}{% endif %}{% for m in messages %}\n{{ m.role | upper }}: {{ m['content'].split('?')[0] }}{% endfor %}",
    "macro and slices": "{% macro show(m) %}<{{ m.role[:1] }}>{{ m.content[1:] }}{% endmacro %}"
    "{% for m in messages[1:] %}{{ show(m) }}{% if loop.index0 is divisibleby 2 %}{% continue %}{% endif %}|{% endfor %}",
}


def with_template(qwen: Tokenizer, source: str) -> Tokenizer:
    return Tokenizer(replace(qwen.vocabulary, chat_template=source))


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_equal_those_of_transformers(qwen: Tokenizer, name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = with_template(qwen, TEMPLATES[name])
    render = transformers.utils.chat_template_utils.render_jinja_template
    for prompt in (False, True):
        rendered, _ = render(
            [TALK], tools=TOOLS, chat_template=TEMPLATES[name], add_generation_prompt=prompt,
            bos_token="", eos_token="<|endoftext|>", pad_token="<|endoftext|>",
        )  # fmt: skip
        expected = qwen.encode(rendered[0], special="all")
        assert ours.chat(TALK, tools=TOOLS, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize("system", ["You are a helpful assistant.", None, "Ты бот.\nКраткий."])
def test_a_template_that_writes_chatml_is_recognised(qwen: Tokenizer, system: str | None) -> None:
    default = "" if system is None else "{{ '<|im_start|>system\n" + system + "<|im_end|>\n' }}"
    source = (
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}" + default + "{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    assert with_template(qwen, source)._chat_format == ChatML(system)
    trimming = source.replace("m['content']", "m['content']|trim")
    assert isinstance(with_template(qwen, trimming)._chat_format, Template)


def test_the_template_that_we_write_is_recognised(qwen: Tokenizer) -> None:
    assert with_template(qwen, CHATML_TEMPLATE)._chat_format == ChatML()


HOSTILE = {
    "double underscore": "{{ ''.__class__.__mro__ }}",
    "attr filter": "{{ ''|attr('__class__') }}",
    "internals of a global": "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "internals of namespace": "{{ namespace.__init__.__globals__ }}",
    "internals of the context": "{{ self._TemplateReference__context.environment }}",
    "method of a list": "{{ messages.append(1) }}",
    "method of a message": "{{ messages[0].update({'role': 'x'}) }}",
    "a string is no function": "{{ 'a'() }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends '/etc/passwd' %}",
    "range": "{% for i in range(1000000000) %}x{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "repetition": "{{ 'a' * 1000000000 }}",
    "repetition from the right": "{{ 1000000000 * 'a' }}",
    "repeated list": "{{ ([0] * 1000000000)|length }}",
    "power": "{{ 10 ** 1000000000 }}",
    "format width": "{{ '%1000000000d' % 1 }}",
    "format method": "{{ '{:1000000000}'.format(1) }}",
    "format map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "center": "{{ 'a'.center(1000000000) }}",
    "center filter": "{{ 'a'|center(1000000000) }}",
    "center by name": "{{ ['a']|map('center', 1000000000)|list }}",
    "zfill": "{{ 'a'.zfill(1000000000) }}",
    "indent": "{{ 'a\nb'|indent(1000000000) }}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "doubling with ~": "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling with +": "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling lists": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling blocks": "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}"
    "{% set n.x = y %}{% endfor %}",
    "keeping copies": "{% set n = namespace(l=[]) %}{% set a = 'a' * 1000000 %}{% for i in range(100000) %}"
    "{% set n.l = n.l + [a|upper] %}{% endfor %}",
    "keeping slices": "{% set n = namespace(l=[]) %}{% set a = 'a' * 1000000 %}{% for i in range(100000) %}"
    "{% set n.l = n.l + [a[1:]] %}{% endfor %}",
    "replace": "{% set a = 'a' * 1000000 %}{{ a.replace('a', a)|length }}",
    "replace filter": "{% set a = 'a' * 1000000 %}{{ a|replace('a', a)|length }}",
    "join": "{% set a = 'a' * 1000000 %}{{ a.join(a)|length }}",
    "join filter": "{% set a = 'a' * 1000000 %}{{ a|join(a)|length }}",
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "endless loop": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "sorting": "{% set a = range(100000)|list %}{% for i in range(10000) %}{% set b = a|sort %}{% endfor %}",
    "searching": "{% set a = 'a' * 10000000 %}{% for i in range(100000) %}{% set b = 'ab' in a %}{% endfor %}",
    "deep list": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "long sum": "{{ " + "+".join(["1"] * 20000) + " }}",
    "syntax": "{% if %}",
    "unknown filter": "{{ 'a'|nothing }}",
    "undefined": "{{ nothing.x }}",
    "division": "{{ 1 / 0 }}",
    "its own refusal": "{{ raise_exception('roles must alternate') }}",
    "long date": "{{ strftime_now('%Y' * 1000) }}",
}


@pytest.mark.timeout(30)  # without a deadline several of them would run for hours
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_soon_in_one_sentence(
    qwen: Tokenizer, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FormatError, match=r"^chat template: ") as caught:
        Template(HOSTILE[name], tuple(qwen.special_tokens)).segments(qwen, TALK)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 << 10  # KiB
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


STRAY = [
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
    "<|extra_1|>",
    "<",
    "|>",
    ">",
    "im_end|>",
    "<|im_",
    "a",
    " ",
    "\n",
]


@settings(max_examples=60, deadline=None)
@given(contents=st.lists(st.lists(st.sampled_from(STRAY), max_size=6).map("".join), min_size=1, max_size=3))
def test_messages_never_add_control_tokens(qwen: Tokenizer, contents: list[str]) -> None:
    """Also where the template's text and the edge of a message would complete a name together."""
    sources = [*TEMPLATES.values(), "{% for m in messages %}<|im_{{ m.content }}|>{{ m.content }}im_end|>{% endfor %}"]
    roles = ("user", "assistant")
    talk: list[dict[str, Any]] = [{"role": roles[at % 2], "content": text} for at, text in enumerate(contents)]
    harmless = [{**message, "content": "x"} for message in talk]
    tools = [{"name": contents[0], contents[-1]: contents, "function": {"name": contents[0]}}]
    for source in sources:
        form = Template(source, tuple(qwen.special_tokens))
        segments = form.segments(qwen, talk, tools=tools)
        expected = form.segments(qwen, harmless, tools=[{"name": "x", "function": {"name": "x"}}])
        assert [s.text for s in segments if s.control] == [s.text for s in expected if s.control]
        assert all(qwen.is_special(i) == s.control for s in segments for i in s.ids)


def test_messages_that_are_not_json_are_refused(qwen: Tokenizer) -> None:
    form = with_template(qwen, TEMPLATES["headers"])
    with pytest.raises(UsageError, match="role"):
        form.chat([{"role": "im_end", "content": "x"}])
    with pytest.raises(UsageError, match="object"):
        form.chat([{"role": "user", "content": object()}])
    deep: Any = "x"
    for _ in range(100):
        deep = [deep]
    with pytest.raises(UsageError, match="nested"):
        form.chat([{"role": "user", "content": deep}])
