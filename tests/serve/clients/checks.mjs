// checks.py for programs of JavaScript: checks by name, one JSON object with those that passed and those that failed.

import assert from "node:assert/strict";

export const [origin, key, model] = process.argv.slice(2);
export const api = `${origin}/v1`;
export const text = "hello 世界 😀\u2028end";
export const calls =
  '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>\n' +
  '<tool_call>\n{"name": "clock", "arguments": {"zone": 1}}\n</tool_call>';
export const weather = {
  type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false,
};
export const clock = {
  type: "object", properties: { zone: { type: "integer" } }, required: ["zone"], additionalProperties: false,
};

export function say(words) {
  return [{ role: "user", content: `say:${words}` }];
}

// A number of the server's /metrics, with all its labels added up.
export async function metric(name) {
  const response = await fetch(`${origin}/metrics`, { headers: { Authorization: `Bearer ${key}` } });
  const lines = (await response.text()).split("\n").filter((line) => line.split(/[ {]/)[0] === `kiloq:${name}`);
  return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" "))), 0);
}

// The engine gives up an answer that nobody waits for, soon after its client has gone.
export async function awaitAbort(before) {
  for (let i = 0; i < 150; i++) {
    if ((await metric("request_aborted_total")) > before && (await metric("num_requests_running")) === 0) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  assert.fail("the engine went on 3 s after the client had gone");
}

// `checks` are those for the scripted model and those for a trained one, by name.
export async function run(client, version, checks) {
  const passed = [];
  const failed = {};
  for (const [name, check] of Object.entries(model === "scripted" ? checks.scripted : checks.trained)) {
    try {
      await check();
      passed.push(name);
    } catch (error) {
      console.error(error);
      failed[name] = `${error.name}: ${error.message}`.slice(0, 600);
    }
  }
  console.log(JSON.stringify({ client, version, model, checks: passed, failed }));
  for (const [name, sentence] of Object.entries(failed)) console.error(`${client} ${version}: ${name}: ${sentence}`);
  process.exit(Object.keys(failed).length ? 1 : 0);
}
