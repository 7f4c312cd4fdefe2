"""What people do with the `llm` command: a model in extra-openai-models.yaml, or an endpoint's URL; see checks.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from checks import CALL, TEXT, model, run, same, scripted, trained
from checks import api as base
from checks import key as secret

LLM = str(Path(sys.executable).parent / "llm")
TOOL = 'def weather(city: str) -> str:\n    "The weather in a city."\n    return "say:rain in " + city\n'
SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 150}, "kind": {"enum": ["child", "adult"]}},
    "required": ["age", "kind"],
    "additionalProperties": False,
}


def configure() -> None:
    """A folder of settings, as a user writes them; JSON is YAML."""
    folder = Path("llm").absolute()
    folder.mkdir(exist_ok=True)
    described = {"model_id": "kiloq", "model_name": model(), "api_base": base(), "api_key_name": "kiloq"}
    described |= {"supports_tools": True, "supports_schema": True}
    (folder / "extra-openai-models.yaml").write_text(json.dumps([described]))
    (folder / "keys.json").write_text(json.dumps({"kiloq": secret()}))
    os.environ["LLM_USER_PATH"] = str(folder)


def llm(*arguments: str, code: int = 0) -> str:
    done = subprocess.run([LLM, *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == code, f"llm ended with {done.returncode}: {done.stderr[-600:]}"
    return done.stdout if code == 0 else done.stderr


def logged() -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(llm("logs", "list", "-n", "1", "--json"))
    return found[0]


@scripted
def a_prompt_streamed_and_whole() -> None:
    same(llm("-m", "kiloq", f"say:{TEXT}"), TEXT + "\n")
    same(logged()["output_tokens"], len(TEXT.encode()) + 1)
    same(llm("-m", "kiloq", "--no-stream", "-o", "max_tokens", "3", "say:abcdef"), "abc\n")


@scripted
def a_conversation_goes_on() -> None:
    same(llm("-m", "kiloq", "say:one"), "one\n")
    same(llm("-c", "say:two"), "two\n")
    same(logged()["response"], "two")


@scripted
def a_function_of_the_user_is_called() -> None:
    for options in ([], ["--no-stream"]):
        found = llm("-m", "kiloq", "--functions", TOOL, *options, f"say:{CALL}")
        assert "rain in Köln" in found, found


@scripted
def an_endpoint_by_its_url() -> None:
    same(llm("openai", "endpoint", base(), "--key", secret(), "--models").strip(), model())
    ask = ["openai", "endpoint", base(), "--key", secret(), "-m", model()]
    same(llm(*ask, f"say:{TEXT}"), TEXT + "\n")
    same(llm(*ask, "--responses", f"say:{TEXT}"), TEXT + "\n")
    assert "rain in Köln" in llm(*ask, "--responses", "--functions", TOOL, f"say:{CALL}")


@scripted
def a_mistake_is_told() -> None:
    told = llm("-m", "kiloq", "-o", "max_tokens", "99999", "say:x", code=1)
    assert "maximum context length is" in told, told


@trained
def a_schema_is_kept() -> None:
    for options in ([], ["--no-stream"]):
        found = json.loads(llm("-m", "kiloq", *options, "--schema", json.dumps(SCHEMA), "Make up a person."))
        same(set(found), {"age", "kind"})


if __name__ == "__main__":
    configure()
    run("llm", version("llm"))
