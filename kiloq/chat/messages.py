"""The sentences of the chat terminal, in English and in Chinese.

One dataclass field per sentence, so that a translation with a sentence missing does not pass the type checker.
Names in braces are filled in where the sentence is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Texts:
    """All sentences of one language."""

    prompt: str
    ready: str
    bye: str
    hint_leave: str
    no_history_file: str
    interrupted: str
    withdrawn: str
    cut_by_limit: str
    cut_by_context: str
    left_out: str
    bad_line: str
    unknown_command: str
    unknown_command_near: str
    lone_sign: str
    no_arguments: str
    needs_file: str
    bad_seed: str
    bad_assignment: str
    bad_value: str
    history_empty: str
    history_cleared: str
    mark_interrupted: str
    undone: str
    seed_is: str
    conf_changed: str
    conf_reset: str
    saved: str
    loaded: str
    system_is: str
    system_default: str
    system_set: str
    tokens: str
    help_notes: str
    help: Mapping[str, str]  # command -> one line


ENGLISH = Texts(
    prompt="you> ",
    ready="{name} ({dtype}, {device}, {context} tokens). :help shows commands, Ctrl-D leaves.",
    bye="Goodbye.",
    hint_leave="Press Ctrl-C once more or Ctrl-D to leave.",
    no_history_file="The input history is not kept after this session: {error}.",
    interrupted="[stopped; the conversation keeps what was written]",
    withdrawn="[stopped before the answer began; the question was taken back]",
    cut_by_limit="[cut at {count} tokens: :conf max_new_tokens={more} allows more]",
    cut_by_context="[cut: the context of {context} tokens is full; :clear-his starts anew]",
    left_out="[the context is full: the model does not see the oldest {count} turn(s)]",
    bad_line="line {number} is not UTF-8: convert it, for example with iconv",
    unknown_command="there is no command {sign}{word}, and it was not sent: :help lists them, {sign}{sign}{word} sends the text",
    unknown_command_near="there is no command {sign}{word}, and it was not sent: did you mean {sign}{near}? ({sign}{sign}{word} sends the text)",
    lone_sign="'{sign}' alone is no command: :help lists them",
    no_arguments="{sign}{word} takes nothing after it, but there is '{rest}': leave it out",
    needs_file="{sign}{word} needs the name of a file, such as {sign}{word} talk.json",
    bad_seed="the seed is '{text}': it must be a whole number from 0 to 18446744073709551615",
    bad_assignment="'{text}' is not a setting: write :conf name=value, such as :conf temperature=0.7 top_p=0.9",
    bad_value="{name} has an unfinished value {text}: close its bracket or quote as in JSON",
    history_empty="No turns yet.",
    history_cleared="The history is empty now.",
    mark_interrupted="[stopped]",
    undone="Taken back: {question}",
    seed_is="seed = {seed}",
    conf_changed="(* changed)",
    conf_reset="The settings are those of the start again.",
    saved="Saved {count} turn(s) to {path}.",
    loaded="Loaded {count} turn(s) from {path}.",
    system_is="System message: {system}",
    system_default="System message: the model's own.",
    system_set="The system message is set.",
    tokens="{used} of {context} tokens are used by {turns} turn(s) and the system message; {free} are free.",
    help_notes=(
        "Every command may start with ':' or '/'. A line of text that would be taken for\n"
        "a command is sent when the sign is doubled: ::help sends ':help'. Paths such as\n"
        "/usr/bin and smileys such as :-) are text. Alt-Enter, or a backslash at the end\n"
        "of the line, continues on the next line. Ctrl-C stops an answer."
    ),
    help={
        "help": "show this list",
        "exit": "leave",
        "clear": "clear the screen",
        "clear-his": "forget the conversation",
        "history": "show the conversation",
        "seed": "show or set the seed",
        "conf": "show or change settings: temperature=0.7 top_k=9",
        "reset-conf": "return to the settings of the start",
        "undo": "take back the last question and its answer",
        "save": "write the conversation to a file",
        "load": "continue a saved conversation",
        "system": "show or set it; '-' returns to the model's own",
        "tokens": "show how full the context is",
    },
)

CHINESE = Texts(
    prompt="你> ",
    ready="{name}（{dtype}，{device}，上下文 {context} 个 token）。:help 列出命令，Ctrl-D 退出。",
    bye="再见。",
    hint_leave="再按一次 Ctrl-C 或按 Ctrl-D 退出。",
    no_history_file="本次会话结束后不保留输入历史：{error}。",
    interrupted="[已停止；已写出的内容保留在对话中]",
    withdrawn="[回答开始前已停止；问题已撤回]",
    cut_by_limit="[在 {count} 个 token 处截断：:conf max_new_tokens={more} 可以更长]",
    cut_by_context="[已截断：{context} 个 token 的上下文已满；:clear-his 重新开始]",
    left_out="[上下文已满：模型看不到最早的 {count} 轮对话]",
    bad_line="第 {number} 行不是 UTF-8：请先转换编码，例如用 iconv",
    unknown_command="没有命令 {sign}{word}，该行未发送：:help 列出命令，{sign}{sign}{word} 可将其作为文字发送",
    unknown_command_near="没有命令 {sign}{word}，该行未发送：是否想用 {sign}{near}？（{sign}{sign}{word} 可将其作为文字发送）",
    lone_sign="单独的 '{sign}' 不是命令：:help 列出命令",
    no_arguments="{sign}{word} 后面不带内容，但这里有 '{rest}'：请去掉",
    needs_file="{sign}{word} 需要文件名，例如 {sign}{word} talk.json",
    bad_seed="随机种子是 '{text}'：必须是 0 到 18446744073709551615 的整数",
    bad_assignment="'{text}' 不是设置：请写 :conf 名称=值，例如 :conf temperature=0.7 top_p=0.9",
    bad_value="{name} 的值 {text} 不完整：请像 JSON 那样补全括号或引号",
    history_empty="还没有对话。",
    history_cleared="对话历史已清空。",
    mark_interrupted="[已停止]",
    undone="已撤回：{question}",
    seed_is="seed = {seed}",
    conf_changed="（* 已修改）",
    conf_reset="设置已恢复为启动时的值。",
    saved="已将 {count} 轮对话保存到 {path}。",
    loaded="已从 {path} 载入 {count} 轮对话。",
    system_is="系统消息：{system}",
    system_default="系统消息：模型自带的默认值。",
    system_set="系统消息已设置。",
    tokens="{turns} 轮对话与系统消息已用 {used} / {context} 个 token，剩余 {free} 个。",
    help_notes=(
        "命令以 ':' 或 '/' 开头均可（全角 '：' '／' 也可）。若一行文字会被当作命令，把符号写两遍即可发送：\n"
        "::help 发送 ':help'，//help 发送 '/help'。/usr/bin 之类的路径和 :-) 之类的表情按文字发送。\n"
        "Alt-Enter 或行末的反斜杠可换行继续输入。Ctrl-C 停止回答。"
    ),
    help={
        "help": "显示本列表",
        "exit": "退出",
        "clear": "清屏",
        "clear-his": "清空对话历史",
        "history": "显示对话历史",
        "seed": "显示或设置随机种子",
        "conf": "显示或修改设置，例如 temperature=0.7 top_k=9",
        "reset-conf": "恢复启动时的设置",
        "undo": "撤回最后一问一答",
        "save": "把对话保存到文件",
        "load": "载入保存的对话",
        "system": "显示或设置系统消息；'-' 恢复模型自带的",
        "tokens": "显示上下文已用多少",
    },
)

LANGUAGES = {"en": ENGLISH, "zh": CHINESE}


def choose_language(asked: str | None, environment: Mapping[str, str]) -> str:
    """`en` or `zh`: what was asked for, else KILOQ_LANG, else the locale (LC_ALL, LC_MESSAGES, LANG as in POSIX)."""
    names = ("KILOQ_LANG", "LC_ALL", "LC_MESSAGES", "LANG")
    locale = asked or next((value for name in names if (value := environment.get(name))), "en")
    return "zh" if locale.lower().startswith("zh") else "en"
