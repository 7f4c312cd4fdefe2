// What applications do with OpenAI's SDK for JavaScript; see checks.mjs.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

import OpenAI, { AuthenticationError, BadRequestError, NotFoundError } from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

import { api, awaitAbort, calls, clock, key, metric, model, run, say, text, weather } from "./checks.mjs";

const client = new OpenAI({ baseURL: api, apiKey: key, maxRetries: 0 });
const tools = [
  { type: "function", function: { name: "weather", parameters: weather } },
  { type: "function", function: { name: "clock", parameters: clock } },
];
const bytes = new TextEncoder().encode(text).length;

function chat(words, fields = {}) {
  return client.chat.completions.create({ model, messages: say(words), ...fields });
}

function checkCalls(found) {
  assert.deepEqual(
    found.map((call) => [call.function.name, JSON.parse(call.function.arguments)]),
    [["weather", { city: "Köln" }], ["clock", { zone: 1 }]],
  );
}

const scripted = {
  async models_are_listed() {
    const names = [];
    for await (const each of client.models.list()) names.push(each.id);
    assert.deepEqual(names, [model]);
  },
  async chat_at_once() {
    const made = await chat(text);
    assert.equal(made.choices[0].message.content, text);
    assert.equal(made.usage.completion_tokens, bytes + 1);
  },
  async chat_in_a_stream_with_usage() {
    let all = "";
    let usage;
    for await (const chunk of await chat(text, { stream: true, stream_options: { include_usage: true } })) {
      all += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.deepEqual([all, usage.completion_tokens], [text, bytes + 1]);
  },
  async calls_at_once_and_in_a_stream() {
    const made = await chat(calls, { tools });
    checkCalls(made.choices[0].message.tool_calls);
    const stream = client.chat.completions.stream({ model, messages: say(calls), tools });
    const final = await stream.finalChatCompletion();
    checkCalls(final.choices[0].message.tool_calls);
    assert.equal(final.choices[0].finish_reason, "tool_calls");
  },
  async functions_are_run() {
    const runner = client.chat.completions.runTools({
      model,
      messages: say(calls.split("\n<tool_call>\n{\"name\": \"clock\"")[0]),
      tools: [{ type: "function", function: { name: "weather", parameters: weather, parse: JSON.parse, function: ({ city }) => `say:rain in ${city}` } }],
    });
    assert.equal((await runner.finalContent()).split("\n")[0], "rain in Köln");
  },
  async log_probabilities() {
    const { content } = (await chat("ab", { logprobs: true, top_logprobs: 2 })).choices[0].logprobs;
    assert.deepEqual(content.slice(0, 2).map((entry) => entry.token), ["a", "b"]);
  },
  async responses_at_once_and_in_a_stream() {
    assert.equal((await client.responses.create({ model, input: `say:${text}` })).output_text, text);
    const stream = client.responses.stream({ model, input: `say:${text}` });
    let all = "";
    for await (const event of stream) if (event.type === "response.output_text.delta") all += event.delta;
    assert.deepEqual([all, (await stream.finalResponse()).output_text], [text, text]);
  },
  async mistakes_are_the_classes_of_the_sdk() {
    await assert.rejects(chat("x", { temperature: 1000 }), (e) => e instanceof BadRequestError && e.param === "temperature");
    await assert.rejects(chat("x", { model: "gpt-4" }), NotFoundError);
    await assert.rejects(new OpenAI({ baseURL: api, apiKey: "wrong", maxRetries: 0 }).models.list(), AuthenticationError);
  },
  async leaving_a_stream_frees_the_engine() {
    const before = await metric("request_aborted_total");
    const stream = await chat("x".repeat(5000), { stream: true });
    for await (const _ of stream) break; // which aborts the request
    await awaitAbort(before);
  },
};

const trained = {
  async a_parsed_answer() {
    const form = z.object({ age: z.number().int().min(0).max(150), kind: z.enum(["child", "adult"]) });
    const made = await client.chat.completions.parse({
      model, messages: [{ role: "user", content: "Tell me about one person." }], response_format: zodResponseFormat(form, "person"),
    });
    assert.deepEqual(Object.keys(made.choices[0].message.parsed).sort(), ["age", "kind"]);
  },
  async embeddings() {
    const made = await client.embeddings.create({ model, input: ["Paris is in France.", "words"] });
    const length = made.data[0].embedding.reduce((sum, value) => sum + value * value, 0);
    assert.ok(made.data.length === 2 && Math.abs(length - 1) < 1e-3);
  },
};

const { version } = JSON.parse(readFileSync("node_modules/openai/package.json", "utf8"));
await run("openai (npm)", version, { scripted, trained });
