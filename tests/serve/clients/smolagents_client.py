"""What smolagents sends: content as lists of parts, stop words, long prompts; and its agents, on an answer we script.

The small model cannot be an agent, so the agents' own machinery runs on what the scripted model is told to say.
"""

from __future__ import annotations

from importlib.metadata import version

from checks import TEXT, model, run, same, scripted, trained
from checks import api as base
from checks import key as secret
from smolagents import ChatMessage, CodeAgent, MessageRole, OpenAIServerModel, ToolCallingAgent, tool

server = OpenAIServerModel(
    model_id=model(), api_base=base(), api_key=secret(), client_kwargs={"max_retries": 0}, max_tokens=500
)
CODE = "<code>\nfinal_answer(add(20, 22))\n</code>"


@tool
def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: One number.
        b: Another number.
    """
    return a + b


def parts(*texts: str) -> list[ChatMessage]:
    content = [{"type": "text", "text": text} for text in texts]
    return [ChatMessage(role=MessageRole.USER, content=content)]


@scripted
def content_in_parts() -> None:
    made = server.generate(parts("sa", f"y:{TEXT}"))
    same(made.content, TEXT)
    assert made.token_usage is not None
    same(made.token_usage.output_tokens, len(TEXT.encode()) + 1)


@scripted
def stop_words() -> None:
    same(server.generate(parts("say:one Observation: two"), stop_sequences=["Observation:", "END"]).content, "one ")


@scripted
def a_stream() -> None:
    same("".join(delta.content or "" for delta in server.generate_stream(parts(f"say:{TEXT}"))), TEXT)


@scripted
def an_agent_that_writes_code() -> None:
    for stream in (False, True):
        agent = CodeAgent(tools=[add], model=server, max_steps=2, verbosity_level=0, stream_outputs=stream)
        same(agent.run(f"say:Thought: I add.\n{CODE}"), 42)


@trained
def an_agent_that_calls_tools() -> None:
    """It asks for a call in every step, so that the server makes the model write one; which, is the model's affair."""
    for stream in (False, True):
        agent = ToolCallingAgent(tools=[add], model=server, max_steps=1, verbosity_level=0, stream_outputs=stream)
        agent.run("What is 20 + 22?")
        (call,) = agent.memory.steps[1].tool_calls
        assert call.name in ("add", "final_answer") and isinstance(call.arguments, dict), call


@trained
def the_real_model_reads_an_agents_prompt() -> None:
    """All that is asked of it is an answer: what it says is no code, which the agent notes and goes on."""
    agent = CodeAgent(tools=[add], model=server, max_steps=1, verbosity_level=0)
    agent.run("What is 20 + 22?")
    step = agent.memory.steps[1]
    assert step.model_output and step.token_usage.input_tokens > 1000, step


if __name__ == "__main__":
    run("smolagents", version("smolagents"))
