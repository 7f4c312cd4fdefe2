// What applications do with Vercel's AI SDK and its provider for servers like ours; see checks.mjs.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, embedMany, generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

import { api, awaitAbort, calls, clock, key, metric, model, run, text, weather } from "./checks.mjs";

const provider = createOpenAICompatible({
  name: "kiloq", baseURL: api, apiKey: key, includeUsage: true, supportsStructuredOutputs: true,
});
const bytes = new TextEncoder().encode(text).length;
const tools = {
  weather: tool({ inputSchema: jsonSchema(weather), execute: async ({ city }) => `say:rain in ${city}` }),
  clock: tool({ inputSchema: jsonSchema(clock), execute: async () => "say:noon" }),
};

function asked(prompt, fields = {}) {
  return { model: provider(model), prompt, maxRetries: 0, ...fields };
}

function checkCalls(found) {
  assert.deepEqual(
    found.map((call) => [call.toolName, call.input]),
    [["weather", { city: "Köln" }], ["clock", { zone: 1 }]],
  );
}

const scripted = {
  async text_at_once() {
    const made = await generateText(asked(`say:${text}`, { system: "Be brief.", temperature: 0.5, stopSequences: ["NO"] }));
    assert.deepEqual([made.text, made.finishReason, made.usage.outputTokens], [text, "stop", bytes + 1]);
  },
  async text_in_a_stream_with_usage() {
    const made = streamText(asked(`say:${text}`));
    let all = "";
    for await (const piece of made.textStream) all += piece;
    assert.deepEqual([all, await made.finishReason, (await made.usage).outputTokens], [text, "stop", bytes + 1]);
  },
  async calls_at_once() {
    const made = await generateText(asked(`say:${calls}`, { tools }));
    assert.equal(made.finishReason, "tool-calls");
    checkCalls(made.toolCalls);
  },
  async calls_in_a_stream_are_run_and_answered() {
    const made = streamText(asked(`say:${calls}`, { tools, stopWhen: stepCountIs(2) }));
    const kinds = [];
    for await (const part of made.fullStream) kinds.push(part.type);
    const steps = await made.steps;
    checkCalls(steps[0].toolCalls);
    assert.ok(kinds.includes("tool-input-delta") && !kinds.includes("error"), kinds.join());
    assert.equal((await made.text).split("\n")[0], "noon");
  },
  async mistakes_are_told() {
    await assert.rejects(generateText(asked("x", { model: provider("gpt-4") })), (e) => e instanceof APICallError && e.statusCode === 404);
    await assert.rejects(generateText(asked("x", { temperature: 1000 })), (e) => e instanceof APICallError && e.message.includes("temperature"));
  },
  async leaving_a_stream_frees_the_engine() {
    const before = await metric("request_aborted_total");
    const leave = new AbortController();
    const made = streamText(asked(`say:${"x".repeat(5000)}`, { abortSignal: leave.signal, onError: () => {} }));
    for await (const _ of made.textStream) break;
    leave.abort();
    await awaitAbort(before);
  },
};

const trained = {
  async an_object_of_a_schema() {
    const form = jsonSchema({
      type: "object", properties: { age: { type: "integer", minimum: 0, maximum: 150 }, kind: { enum: ["child", "adult"] } },
      required: ["age", "kind"], additionalProperties: false,
    });
    const made = await generateText(asked("Tell me about one person.", { output: Output.object({ schema: form }) }));
    assert.deepEqual(Object.keys(made.output).sort(), ["age", "kind"]);
  },
  async a_call_that_is_required() {
    const made = await generateText(asked("Hello", { tools: { clock: tool({ inputSchema: jsonSchema(clock) }) }, toolChoice: "required" }));
    assert.equal(made.toolCalls[0].toolName, "clock");
    assert.ok(Number.isInteger(made.toolCalls[0].input.zone));
  },
  async embeddings() {
    const { embeddings } = await embedMany({ model: provider.textEmbeddingModel(model), values: ["Paris is in France.", "words"], maxRetries: 0 });
    assert.ok(embeddings.length === 2 && Math.abs(embeddings[0].reduce((sum, value) => sum + value * value, 0) - 1) < 1e-3);
  },
};

const { version } = JSON.parse(readFileSync("node_modules/ai/package.json", "utf8"));
await run("ai (npm)", version, { scripted, trained });
