"""What Qwen-Agent does over OpenAI's API: it describes tools in its own words and reads calls out of the text itself.

So a request without `tools` must leave <tool_call> in the text as it is. With `use_raw_api` it sends tools as others do.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

from checks import CALL, TEXT, first_line, model, run, same, say, scripted, trained
from checks import api as base
from checks import key as secret
from qwen_agent.agents import Assistant
from qwen_agent.llm import get_chat_model
from qwen_agent.tools.base import BaseTool, register_tool

ACCESS = {"model": model(), "model_server": base(), "api_key": secret()}


@register_tool("weather")
class Weather(BaseTool):
    description = "The weather in a city."
    parameters = {  # noqa: RUF012
        "type": "object",
        "properties": {"city": {"type": "string", "description": "its name"}},
        "required": ["city"],
    }

    def call(self, params: Any, **_: Any) -> str:
        given = json.loads(params) if isinstance(params, str) else params
        same(given, {"city": "Köln"})
        return "say:rain"


def chat(config: dict[str, Any], **fields: Any) -> list[Any]:
    return list(get_chat_model(ACCESS | {"generate_cfg": config}).chat(**fields))


@scripted
def chat_at_once_and_in_a_stream() -> None:
    config = {"top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05, "seed": 7, "max_retries": 0}
    (message,) = chat(config, messages=say(TEXT), stream=False)
    same(message["content"], TEXT)
    *_, last = chat(config, messages=say(TEXT), stream=True, delta_stream=False)
    same(last[0]["content"], TEXT)
    pieces = chat(config, messages=say(TEXT), stream=True, delta_stream=True)
    same("".join(message["content"] for piece in pieces for message in piece), TEXT)


@scripted
def an_assistant_calls_a_tool() -> None:
    for config in ({"max_retries": 0}, {"max_retries": 0, "use_raw_api": True}):
        agent = Assistant(llm=ACCESS | {"generate_cfg": config}, function_list=["weather"])
        *_, last = agent.run(say(CALL))
        roles = [message["role"] for message in last]
        same(roles, ["assistant", "function", "assistant"])
        same(json.loads(last[0]["function_call"]["arguments"]), {"city": "Köln"})
        same(first_line(last[-1]["content"]), "rain")


@trained
def the_real_model_answers() -> None:
    agent = Assistant(
        llm=ACCESS | {"generate_cfg": {"max_retries": 0, "max_tokens": 20}},
        system_message="Be brief.",
        function_list=[],
    )
    *_, last = agent.run([{"role": "user", "content": "Hello!"}])
    assert last[-1]["content"], last


if __name__ == "__main__":
    run("qwen-agent", version("qwen-agent"))
