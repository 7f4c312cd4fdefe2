/*
 * Untrusted text: model output, names and files that try to run scripts, send requests, or take over the page. The faults
 * that every visit counts (other origins, policy, dialogs, errors) are the verdict; the checks here only bring the text in.
 */
import assert from "node:assert/strict";

const EVIL_NAME = '"><img src=x onerror="window.pwned=1"><script>window.pwned=1</script>';

/** Nothing of what may not exist exists. */
async function assertHarmless(page) {
  const found = await page.evaluate(() => {
    const scripts = [...document.scripts].filter((script) => !script.src.endsWith("/ui/src/main.js")).length;
    const forbidden = document.querySelectorAll(
      "#app :is(iframe, object, embed, video, audio, form[action], link, meta, base, style, svg image, template)",
    ).length;
    const handlers = [...document.querySelectorAll("#app *")].filter((element) =>
      [...element.attributes].some(({ name }) => name.startsWith("on")),
    ).length;
    const links = [...document.querySelectorAll("#app .body a")].filter(
      (link) => !/^(https?:|mailto:)/.test(link.href) && link.hasAttribute("href"),
    ).length;
    const images = [...document.querySelectorAll("#app .body img")].filter(
      (image) => !/^data:image\/(png|jpeg|gif|webp|avif);/.test(image.src),
    ).length;
    return { scripts, forbidden, handlers, links, images, one: document.querySelectorAll("#app").length };
  });
  assert.deepEqual(found, { scripts: 0, forbidden: 0, handlers: 0, links: 0, images: 0, one: 1 });
}

export async function model_output_stays_text(visit) {
  const { page, stub } = visit;
  const { payloads } = await stub.seen();
  assert.ok(payloads.length >= 15);
  for (const index of payloads.keys()) {
    await visit.say(`payload ${index}`);
    await assertHarmless(page);
  }
  const links = await page
    .locator(".body a[href]")
    .evaluateAll((found) => found.map((link) => [link.rel, link.target]));
  assert.ok(links.length > 3, "links and remote images are shown as links");
  assert.ok(links.every(([rel, target]) => rel === "noopener noreferrer" && target === "_blank"));
  await page.getByText("<script>window.pwned = 1</script>").first().waitFor();
}

export async function the_sanitiser_alone_holds_too(visit) {
  const { page, stub } = visit;
  const { payloads } = await stub.seen();
  await page.evaluate(async (texts) => {
    const { sanitize } = await import("/ui/src/markdown.js");
    const body = document.createElement("div");
    body.className = "body";
    document.getElementById("app").append(body);
    for (const text of texts) body.append(sanitize(text));
  }, payloads);
  await assertHarmless(page);
  // Parsing a handler or a style attribute is reported as a breach even in a detached document, where it has no effect.
  visit.faults = visit.faults.filter((fault) => !/policy/i.test(fault));
}

export async function names_and_arguments_stay_text(visit) {
  const { page, stub } = visit;
  await stub.set({ models: [EVIL_NAME] });
  try {
    await page.reload();
    await page.locator(".model option", { hasText: "img" }).waitFor({ state: "attached" });
    await visit.choose(() => page.getByRole("button", { name: "Attach text files" }).click(), {
      name: `${EVIL_NAME.replaceAll("/", "")}.txt`,
      mimeType: "text/plain",
      buffer: Buffer.from(EVIL_NAME),
    });
    await page.locator(".files li").waitFor();
    await visit.say(`${EVIL_NAME} weather`);
    await page.getByLabel("Paste the result of the call").fill(EVIL_NAME);
    await page.getByRole("button", { name: "Add result" }).click();
    await page.locator(".message.tool").waitFor();
    await visit.answered();
    await assertHarmless(page);
    await page.getByRole("button", { name: "Tokenizer" }).click();
    await page.getByLabel("Text", { exact: true }).fill(EVIL_NAME);
    await page.locator(".token-list .token", { hasText: "script" }).first().hover();
    await assertHarmless(page);
  } finally {
    await stub.set({ models: ["qwen-tiny", "qwen-tiny-lora"] });
  }
}

const ID = (digit) => digit.repeat(24);
const message = (fields = {}) => ({
  id: ID("a"),
  parent: null,
  role: "user",
  content: EVIL_NAME,
  created: 1,
  ...fields,
});
const conversation = (fields = {}) => ({
  id: ID("c"),
  title: EVIL_NAME,
  created: 1,
  updated: 1,
  system: "",
  leaf: ID("a"),
  messages: [message()],
  ...fields,
});
const file = (conversations, fields = {}) => ({ format: "kiloq-conversations", version: 1, conversations, ...fields });

const HOSTILE = {
  "not JSON": "<html>",
  "a list": [],
  "another format": file([], { format: "other" }),
  "a later version": file([], { version: 2 }),
  "no list": file({}),
  "an id with markup": file([conversation({ id: "<img src=x>" })]),
  "an id of the prototype": file([conversation({ id: "__proto__" })]),
  "a parent that is not there": file([conversation({ messages: [message({ parent: ID("b") })] })]),
  "a circle": file([conversation({ messages: [message({ parent: ID("a") })] })]),
  "one id twice": file([conversation({ messages: [message(), message()] })]),
  "a leaf that is not there": file([conversation({ leaf: ID("b") })]),
  "a role that is none": file([conversation({ messages: [message({ role: "system" })] })]),
  "content that is an object": file([conversation({ messages: [message({ content: { toString: "x" } })] })]),
  "a title without end": file([conversation({ title: "x".repeat(1000) })]),
  "bytes that are none": file([
    conversation({ messages: [message({ tokens: [{ token: "a", logprob: 0, bytes: [999] }] })] }),
  ]),
  "a call without a function": file([conversation({ messages: [message({ tool_calls: [{ id: "1" }] })] })]),
  "a number that is text": file([conversation({ updated: "9".repeat(400) })]),
};

export async function hostile_files_are_refused_with_a_sentence(visit) {
  const { page } = visit;
  const take = (content) =>
    visit.choose(() => page.getByRole("button", { name: "Import" }).click(), {
      name: `${EVIL_NAME.replaceAll("/", "")}.json`,
      mimeType: "application/json",
      buffer: Buffer.from(typeof content === "string" ? content : JSON.stringify(content)),
    });
  for (const [name, content] of Object.entries(HOSTILE)) {
    await take(content);
    await page.getByRole("dialog", { name: "File not imported" }).waitFor();
    assert.equal(await page.locator(".conversation").count(), 0, name);
    await page.keyboard.press("Escape");
  }
  await take(
    file([conversation({ evil: EVIL_NAME, messages: [message({ onclick: "window.pwned=1", innerHTML: "x" })] })]),
  );
  await page.locator(".conversation").click();
  assert.equal(await page.locator(".message.user .body").textContent(), EVIL_NAME);
  await assertHarmless(page);
}
