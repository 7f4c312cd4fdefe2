/*
 * Talking: sending, streaming, stopping, branches, keeping, moving conversations in and out, tools and models.
 */
import assert from "node:assert/strict";
import { until } from "./harness.mjs";

export async function sends_and_shows_markdown(visit) {
  const { page } = visit;
  await visit.say("Show me markdown");
  const body = visit.answer().locator(".body");
  assert.equal(await body.locator("table tbody tr").count(), 2);
  assert.equal(await body.locator("pre code.language-python .hljs-keyword").first().textContent(), "def");
  assert.equal(await body.locator("math").count(), 2);
  assert.equal(await body.locator("a").first().getAttribute("rel"), "noopener noreferrer");
  assert.equal(await body.locator("a").first().getAttribute("target"), "_blank");
  assert.match(await visit.answer().locator(".meta").textContent(), /206 tokens .* tokens\/s/);
  assert.match(await page.locator(".context").textContent(), /227 of 2,048 tokens/);
  assert.equal(await page.title(), "Show me markdown · kiloq");
  const request = await visit.stub.lastRequest();
  assert.deepEqual(request.messages, [{ role: "user", content: "Show me markdown" }]);
  assert.equal(request.model, "qwen-tiny");
  assert.equal("temperature" in request, false);
}

export async function shift_enter_and_input_methods_do_not_send(visit) {
  const { page } = visit;
  const box = page.locator(".composer textarea");
  await box.pressSequentially("one");
  await box.press("Shift+Enter");
  await box.pressSequentially("two");
  await box.evaluate((element) => {
    for (const fields of [{ isComposing: true }, { keyCode: 229 }]) {
      element.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true, ...fields }));
    }
  });
  assert.equal(await page.locator(".message").count(), 0);
  await box.press("Enter");
  await visit.answered();
  assert.equal(await page.locator(".message.user .body").textContent(), "one\ntwo");
}

export async function stop_closes_the_connection(visit) {
  const { page, stub } = visit;
  const before = (await stub.seen()).closed;
  await visit.say("slow please", { wait: false });
  await page.locator(".message.assistant .body", { hasText: "word5" }).waitFor();
  await page.getByRole("button", { name: "Stop" }).click();
  await visit.answered();
  await until(async () => (await stub.seen()).closed > before, "the server sees the connection closed");
  assert.match(await visit.answer().locator(".note").textContent(), /Stopped/);
  await visit.say("slow again", { wait: false });
  await page.locator(".message.running .body", { hasText: "word2" }).waitFor();
  await page.keyboard.press("Escape");
  await visit.answered();
}

export async function edits_make_branches_that_can_be_walked(visit) {
  const { page } = visit;
  await visit.say("first question");
  await page.locator(".message.user").getByRole("button", { name: "Edit" }).click();
  await page.getByLabel("Edited text").fill("second question");
  await page.getByRole("button", { name: "Send edited" }).click();
  await page.locator(".message.assistant .body", { hasText: "second question" }).waitFor();
  const question = page.locator(".message.user");
  assert.match(await question.locator(".branch-place").textContent(), /2\/2/);
  await question.getByRole("button", { name: "Previous version" }).click();
  assert.equal(await question.locator(".body").textContent(), "first question");
  assert.match(await visit.answer().locator(".body").textContent(), /first question/);
  await visit.answer().getByRole("button", { name: "Regenerate" }).click();
  await page.locator(".message.assistant .branch-place", { hasText: "2/2" }).waitFor();
  await visit.answered();
  assert.deepEqual((await visit.stub.lastRequest()).messages, [{ role: "user", content: "first question" }]);
}

export async function reload_keeps_everything(visit) {
  const { page } = visit;
  await visit.say("remember me");
  await visit.answer().getByRole("button", { name: "Regenerate" }).click();
  await page.locator(".message.assistant .branch-place", { hasText: "2/2" }).waitFor();
  await visit.answered();
  await visit.say("slow words", { wait: false });
  await page.locator(".message.running .body", { hasText: "word60" }).waitFor(); // longer than a second: written once
  await page.reload();
  await page.locator(".message").nth(3).waitFor();
  assert.match(await visit.answer().locator(".body").textContent(), /word0 word1/);
  assert.match(await page.locator(".message.assistant").first().locator(".branch-place").textContent(), /2\/2/);
  assert.equal(await page.locator(".conversation[aria-current=page]").textContent(), "remember me");
}

export async function reasoning_is_folded_away(visit) {
  await visit.say("think");
  assert.equal((await visit.answer().locator(".body").textContent()).trim(), "The answer is 2.");
  assert.equal(await visit.answer().locator(".thinking p").textContent(), "Let me see.");
  assert.equal(
    await visit
      .answer()
      .locator(".thinking")
      .evaluate((element) => element.open),
    false,
  );
}

export async function streams_and_tokens_are_read_however_they_are_cut(visit) {
  const found = await visit.page.evaluate(async () => {
    const { events } = await import("/ui/src/sse.js");
    const { visibleParts } = await import("/ui/src/bytes.js");
    const text = ': ping\r\n\r\ndata: {"a":\r\ndata: "你"}\r\n\r\ndata:two\n\nevent: x\ndata: [DONE]\n\ndata: cut off';
    const bytes = new TextEncoder().encode(text);
    const read = {};
    for (const size of [1, 2, 3, 7, 1000]) {
      const stream = new ReadableStream({
        start(controller) {
          for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
          controller.close();
        },
      });
      read[size] = [];
      for await (const data of events(stream)) read[size].push(data);
    }
    const seen = [
      [0x20, 0x61],
      [0xe4, 0xb8],
      [0x61, 0x96, 0xe4, 0xbd, 0xa0],
      [0xe2, 0x80, 0x8b],
      [0xf0, 0x9f, 0x98, 0x80],
      [0x00],
      [0xc0, 0x80],
      [0xef, 0xbb, 0xbf],
    ];
    return { read, seen: seen.map((data) => visibleParts({ token: "", bytes: data }).map((part) => part.text)) };
  });
  for (const data of Object.values(found.read)) assert.deepEqual(data, ['{"a":\n"你"}', "two", "[DONE]"]);
  assert.deepEqual(found.seen, [
    ["·", "a"],
    ["E4 B8"],
    ["a", "96", "你"],
    ["U+200B"],
    ["😀"],
    ["␀"],
    ["C0 80"],
    ["U+FEFF"],
  ]);
}

export async function bytes_of_cut_characters_are_found_or_left_open(visit) {
  const found = await visit.page.evaluate(async () => {
    const { alignBytes } = await import("/ui/src/align.js");
    const text = "a你\ufffd😀😀 \u200bé字字字";
    const bytes = [...new TextEncoder().encode(text)];
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    const counts = { right: 0, open: 0, wrong: 0 };
    // Every way to cut by a pattern: three lengths of 1 to 4 in turn, across characters too.
    for (let pattern = 0; pattern < 64; pattern++) {
      const lengths = [pattern & 3, (pattern >> 2) & 3, (pattern >> 4) & 3];
      const tokens = [];
      for (let at = 0; at < bytes.length; at += tokens.at(-1).length) {
        tokens.push(bytes.slice(at, at + lengths[tokens.length % 3] + 1));
      }
      const strings = tokens.map((token) => decoder.decode(new Uint8Array(token)));
      alignBytes(text, strings).forEach((given, index) => {
        const verdict = given === null ? "open" : String(given) === String(tokens[index]) ? "right" : "wrong";
        counts[verdict]++;
      });
    }
    return { counts, other: alignBytes("another text", ["a", "\ufffd"]) };
  });
  assert.equal(found.counts.wrong, 0);
  assert.ok(found.counts.right > found.counts.open, "most cuts allow one reading only");
  assert.deepEqual(found.other, [null, null]);
}

export async function continues_a_cut_answer_in_place(visit) {
  await visit.say("cut it");
  assert.match(await visit.answer().locator(".note").textContent(), /limit of tokens/);
  await visit.answer().getByRole("button", { name: "Continue" }).click();
  await visit.page.locator(".message.assistant .body", { hasText: "As far as the limitYou said" }).waitFor();
  const request = await visit.stub.lastRequest();
  assert.equal(request.continue_final_message, true);
  assert.equal(request.messages.at(-1).content, "As far as the limit");
}

export async function conversations_are_searched_renamed_deleted(visit) {
  const { page } = visit;
  await visit.say("about apples");
  await page.keyboard.press("Control+k");
  await visit.say("about pears");
  await page.getByLabel("Search conversations").fill("apples");
  assert.deepEqual(await page.locator(".conversation").allTextContents(), ["about apples"]);
  await page.getByLabel("Search conversations").fill("");
  await page.getByRole("button", { name: "Actions for “about pears”" }).click();
  await page.getByRole("menuitem", { name: "Rename" }).click();
  await page.getByLabel("Title").fill("Quinces");
  await page.keyboard.press("Enter");
  await page.locator(".conversation", { hasText: "Quinces" }).waitFor();
  await page.getByRole("button", { name: "Actions for “about apples”" }).click();
  await page.getByRole("menuitem", { name: "Delete" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
  await page.locator(".conversation", { hasText: "apples" }).waitFor({ state: "detached" });
  await page.reload();
  await page.locator(".conversation").first().waitFor();
  assert.deepEqual(await page.locator(".conversation").allTextContents(), ["Quinces"]);
}

export async function export_and_import_are_a_round_trip(visit) {
  const { page } = visit;
  await visit.choose(() => page.getByRole("button", { name: "Attach text files" }).click(), {
    name: "n.txt",
    mimeType: "text/plain",
    buffer: Buffer.from("fenced ``` text"),
  });
  await page.locator(".files li").waitFor();
  await visit.say("chinese please");
  assert.match((await visit.stub.lastRequest()).messages[0].content, /n\.txt:\n````\nfenced ``` text\n````$/);
  await visit.say("weather now");
  const all = () => page.getByRole("button", { name: "Export all" }).click();
  const first = JSON.parse(await visit.downloaded(all));
  assert.equal(first.conversations[0].messages[1].tokens.length, 15);
  const name = { name: "all.json", mimeType: "application/json", buffer: Buffer.from(JSON.stringify(first)) };
  await visit.choose(() => page.getByRole("button", { name: "Import" }).click(), name);
  await page.locator(".toast", { hasText: "1 was here already" }).waitFor();
  await page.getByRole("button", { name: "Settings" }).click();
  await page.getByRole("button", { name: "Delete all conversations" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Delete", exact: true }).click();
  await page.locator(".conversation").waitFor({ state: "detached" });
  await page.keyboard.press("Escape");
  await visit.choose(() => page.getByRole("button", { name: "Import" }).click(), name);
  await page.locator(".conversation").click();
  assert.deepEqual(JSON.parse(await visit.downloaded(all)).conversations, first.conversations);
  await page.getByRole("button", { name: /^Actions for/ }).click();
  const markdown = await visit.downloaded(() => page.getByRole("menuitem", { name: "Export as Markdown" }).click());
  assert.match(markdown, /^# chinese please\n\n## You\n\nchinese please\n\nn\.txt:/);
}
export_and_import_are_a_round_trip.settings = { tokenView: true };

export async function tool_calls_are_cards_that_take_results(visit) {
  const { page } = visit;
  await page.getByRole("button", { name: "Settings" }).click();
  await page.getByRole("button", { name: "Insert an example" }).click();
  await page.keyboard.press("Escape");
  await visit.say("both places");
  assert.equal(await page.locator(".tool-card").count(), 2);
  assert.match(await page.locator(".tool-card pre").first().textContent(), /"city": "Hangzhou",\n/);
  const request = await visit.stub.lastRequest();
  assert.equal(request.tools[0].function.name, "get_weather");
  for (const result of ["sunny", "rain"]) {
    await page.getByLabel("Paste the result of the call").first().fill(result);
    await page.getByRole("button", { name: "Add result" }).first().click();
  }
  await page.locator(".message.assistant .body", { hasText: "The tool said: rain" }).waitFor();
  const { messages } = await visit.stub.lastRequest();
  assert.deepEqual(
    messages.map((message) => message.role),
    ["user", "assistant", "tool", "tool"],
  );
  assert.deepEqual(
    messages.slice(2).map((message) => [message.tool_call_id, message.content]),
    [
      ["call_0", "sunny"],
      ["call_1", "rain"],
    ],
  );
  assert.equal(messages[1].tool_calls[1].function.arguments, '{"city": "Hangzhou", "unit": "celsius"}');
}

export async function models_and_sampling_reach_the_server(visit) {
  const { page } = visit;
  await page.locator(".model").selectOption("qwen-tiny-lora");
  await page.getByRole("button", { name: "Settings" }).click();
  await page.getByLabel("For this conversation").fill("Be brief.");
  await page.getByLabel("temperature").fill("0.5");
  await page.getByLabel("top_k").fill("1.5");
  assert.match(await page.locator(".hint.wrong").textContent(), /Not taken over/);
  await page.getByLabel("seed").fill("7");
  await page.getByLabel("Stop strings").fill("END\n\\n\\n");
  await page.keyboard.press("Escape");
  await visit.say("hello");
  const request = await visit.stub.lastRequest();
  assert.equal(request.model, "qwen-tiny-lora");
  assert.deepEqual(request.messages[0], { role: "system", content: "Be brief." });
  assert.deepEqual(
    [request.temperature, request.seed, request.stop, "top_k" in request],
    [0.5, 7, ["END", "\n\n"], false],
  );
  assert.equal(await visit.answer().locator(".speaker").textContent(), "qwen-tiny-lora");
}
