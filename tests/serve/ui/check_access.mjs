/*
 * Access: by keyboard alone, by screen reader (axe-core, and what the live region says), on a phone, in both themes and both
 * languages; and the token view, which has to work for all of them.
 */
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { until } from "./harness.mjs";

const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const PHONE = { viewport: { width: 390, height: 844 }, hasTouch: true };

/** No serious or critical finding. axe is put into the page by the browser's tooling, which the policy does not bind. */
async function assertAccessible(visit, where) {
  const { page } = visit;
  if (!(await page.evaluate(() => "axe" in window))) {
    const { readFile } = await import("node:fs/promises");
    await page.evaluate(await readFile(AXE, "utf8"));
  }
  const found = await page.evaluate(async () => {
    const { violations } = await window.axe.run(document, { resultTypes: ["violations"] });
    return violations
      .filter(({ impact }) => impact === "serious" || impact === "critical")
      .map(
        ({ id, nodes }) =>
          `${id}: ${nodes.map(({ html, failureSummary }) => `${html.slice(0, 160)} (${failureSummary})`).join("; ")}`,
      );
  });
  assert.deepEqual(found, [], where);
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(overflow <= 0, `${where}: the page is ${overflow} px too wide`);
}

/** Goes through the page's states and tests each. */
async function tour(visit, words) {
  const { page } = visit;
  const phone = page.viewportSize().width < 760;
  await assertAccessible(visit, "empty");
  await visit.say("markdown");
  await visit.say("weather");
  await page.locator(".thread").evaluate((element) => (element.scrollTop = 0));
  await assertAccessible(visit, "messages");
  await visit.say("break");
  await visit.say("chinese");
  await visit.answer().locator("[aria-pressed]").click();
  await visit.answer().locator(".token-list .token").nth(2).focus();
  await page.locator(".token-panel").waitFor();
  await assertAccessible(visit, "tokens");
  await page.keyboard.press("Escape");
  await page.getByRole("button", { name: words.settings }).click();
  await assertAccessible(visit, "settings");
  await page.keyboard.press("Escape");
  if (phone) await page.getByRole("button", { name: words.conversations, exact: true }).click();
  await page.locator(".conversations .menu-holder button").first().click();
  await assertAccessible(visit, "menu");
  await page.keyboard.press("Escape");
  await page.getByRole("button", { name: words.tokenizer }).click();
  await page.locator(".dialog .token").first().waitFor();
  await assertAccessible(visit, "tokenizer");
}

const EN = { settings: "Settings", conversations: "Conversations", tokenizer: "Tokenizer" };
const ZH = { settings: "设置", conversations: "对话列表", tokenizer: "分词器" };
const WITH_TOKENS = { tokenView: true };

/** @param {object} options of the browser context @param {object} words of the language */
const accessible = (options, words) => Object.assign((visit) => tour(visit, words), { options, settings: WITH_TOKENS });

export const axe_desktop_light_english = accessible({ colorScheme: "light" }, EN);
export const axe_desktop_dark_chinese = accessible({ colorScheme: "dark", locale: "zh-CN" }, ZH);
export const axe_phone_dark_english = accessible({ colorScheme: "dark", ...PHONE }, EN);
export const axe_phone_light_chinese = accessible({ colorScheme: "light", locale: "zh-CN", ...PHONE }, ZH);

export async function the_keyboard_is_enough(visit) {
  const { page } = visit;
  const focused = () =>
    page.evaluate(() => {
      const { activeElement: element, body } = document;
      return element && element !== body ? (element.getAttribute("aria-label") ?? element.textContent ?? "") : "";
    });
  const tabTo = async (name) => {
    for (let presses = 0; presses < 60; presses++) {
      if ((await focused()).includes(name)) return;
      await page.keyboard.press("Tab");
    }
    assert.fail(`Tab never reaches ${name}; it is at ${await focused()}`);
  };
  assert.equal(await page.evaluate(() => document.activeElement?.tagName), "TEXTAREA");
  await tabTo("Skip to the message box");
  await page.keyboard.press("Enter");
  await page.keyboard.type("by keyboard");
  await page.locator(".composer .send:not(:disabled)").waitFor();
  await page.keyboard.press("Enter");
  await visit.answered();
  assert.equal(await page.evaluate(() => document.activeElement?.tagName), "TEXTAREA");
  await page.keyboard.press("Control+k");
  await page.keyboard.type("another");
  await page.keyboard.press("Enter");
  await visit.answered();
  await page.reload();
  await tabTo("Actions for “another”");
  assert.notEqual(await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle), "none");
  await page.keyboard.press("Enter");
  await page.getByRole("menuitem", { name: "Rename" }).waitFor();
  for (const [key, name] of [
    ["ArrowDown", "Export as JSON"],
    ["End", "Delete"],
    ["ArrowDown", "Rename"],
    ["ArrowUp", "Delete"],
    ["Home", "Rename"],
  ]) {
    await page.keyboard.press(key);
    assert.equal(await focused(), name);
  }
  await page.keyboard.press("Escape");
  assert.equal(await focused(), "Actions for “another”");
  await tabTo("by keyboard");
  await page.keyboard.press("Enter");
  await page.locator(".message.user .body", { hasText: "by keyboard" }).waitFor();
  await tabTo("Settings");
  await page.keyboard.press("Enter");
  await page.getByRole("dialog", { name: "Settings" }).waitFor();
  await page.keyboard.press("Escape");
  assert.equal(await focused(), "Settings");
  await tabTo("Regenerate");
  await page.keyboard.press("Enter");
  await page.locator(".branch-place", { hasText: "2/2" }).waitFor();
  await visit.answered();
  await tabTo("Previous version");
  await page.keyboard.press("Enter");
  await page.locator(".branch-place", { hasText: "1/2" }).waitFor();
  assert.equal(await focused(), "Next version");
}

export async function tokens_show_bytes_and_alternatives_to_mouse_and_keyboard(visit) {
  const { page } = visit;
  await visit.say("chinese");
  const request = await visit.stub.lastRequest();
  assert.deepEqual([request.logprobs, request.top_logprobs], [true, 5]);
  await visit.answer().getByRole("button", { name: "Token view" }).click();
  const tokens = visit.answer().locator(".token-list .token");
  assert.equal(await tokens.count(), 15);
  assert.deepEqual(await tokens.nth(3).allTextContents(), ["E4 B8"]);
  assert.deepEqual(await tokens.nth(8).allTextContents(), ["↵↵"]);
  await tokens.first().hover();
  const panel = visit.answer().locator(".token-panel");
  assert.match(await panel.textContent(), /BytesE4 BD A0.*Probability97%/);
  assert.equal(await panel.locator("tbody tr").count(), 5);
  await tokens.first().focus();
  await page.keyboard.press("ArrowRight");
  assert.match(await panel.textContent(), /BytesE5 A5 BD/);
  assert.equal(await tokens.nth(1).getAttribute("aria-describedby"), await panel.getAttribute("id"));
  await page.keyboard.press("Escape");
  await panel.waitFor({ state: "hidden" });
}
tokens_show_bytes_and_alternatives_to_mouse_and_keyboard.settings = { tokenView: true };

export async function the_tokenizer_shows_text_and_prompt(visit) {
  const { page } = visit;
  await visit.say("hello");
  await visit.answer().getByRole("button", { name: "Token view" }).click();
  await visit.answer().locator(".token", { hasText: "hello" }).waitFor();
  await page.getByRole("button", { name: "Tokenizer" }).click();
  await page.getByLabel("Text", { exact: true }).fill("one two\tthree");
  await page.locator(".summary", { hasText: "4 tokens · 13 characters" }).waitFor();
  assert.deepEqual(await page.locator(".dialog .token").allTextContents(), ["one", "·two", "⇥", "three"]);
  await page.getByLabel("Text", { exact: true }).fill("到世界");
  await page.locator(".dialog .token", { hasText: "8C" }).waitFor();
  assert.deepEqual(await page.locator(".dialog .token").allTextContents(), ["到", "E4 B8", "96", "E7 95", "8C"]);
  await visit.stub.set({ token_strs: false });
  try {
    await page.getByLabel("Text", { exact: true }).fill("asked one by one");
    await page.locator(".dialog .token", { hasText: "asked" }).waitFor();
    assert.deepEqual(await page.locator(".dialog .token").allTextContents(), ["asked", "·one", "·by", "·one"]);
  } finally {
    await visit.stub.set({ token_strs: true, token_bytes: true });
  }
  try {
    await page.getByLabel("Text", { exact: true }).fill("世界 and bytes");
    await page.locator(".dialog .token", { hasText: "bytes" }).hover();
    assert.deepEqual((await page.locator(".dialog .token").allTextContents()).slice(0, 4), [
      "E4 B8",
      "96",
      "E7 95",
      "8C",
    ]);
    assert.match(await page.locator(".dialog .token-panel").textContent(), /Bytes20 62 79 74 65 73/);
    await page.keyboard.press("Escape");
    await page.locator(".dialog .token-panel").waitFor({ state: "hidden" });
  } finally {
    await visit.stub.set({ token_bytes: false });
  }
  await page.getByLabel("Show").selectOption("conversation");
  await page.locator(".dialog .token", { hasText: "user" }).first().waitFor();
}

export async function speech_gets_sentences_and_not_every_word(visit) {
  const { page } = visit;
  await page.evaluate(() => {
    window.spoken = [];
    new MutationObserver((changes) =>
      changes.forEach((change) => change.addedNodes.forEach((node) => window.spoken.push(node.textContent))),
    ).observe(document.querySelector("[role=log]"), { childList: true });
  });
  await visit.say("markdown");
  await until(() => page.evaluate(() => window.spoken.includes("Answer finished.")), "the end is announced");
  const spoken = await page.evaluate(() => window.spoken);
  assert.ok(spoken.length <= 4, `too many announcements: ${spoken.length}`);
  assert.equal(await page.locator(".thread[aria-live], .message[aria-live]").count(), 0);
}

export async function language_and_theme_change_at_once(visit) {
  const { page } = visit;
  await visit.say("hello");
  const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await paper();
  await page.getByRole("button", { name: "Settings" }).click();
  await page.getByLabel("Theme").selectOption("dark");
  assert.notEqual(await paper(), light);
  await page.getByLabel("Language").selectOption("zh");
  await page.getByRole("dialog", { name: "设置" }).waitFor();
  assert.equal(await page.evaluate(() => document.documentElement.lang), "zh-Hans");
  await page.keyboard.press("Escape");
  await page.getByRole("button", { name: "发送" }).waitFor();
  assert.match(await visit.answer().locator(".body").textContent(), /You said: hello/);
}

export async function the_drawer_opens_and_closes(visit) {
  const { page } = visit;
  await visit.say("hello");
  await page.locator(".sidebar").waitFor({ state: "hidden" });
  await page.getByRole("button", { name: "Conversations", exact: true }).click();
  await page.locator(".sidebar").waitFor();
  await page.keyboard.press("Escape");
  await page.locator(".sidebar").waitFor({ state: "hidden" });
  await page.getByRole("button", { name: "Conversations", exact: true }).click();
  await page.locator(".conversation").click();
  await page.locator(".sidebar").waitFor({ state: "hidden" });
}
the_drawer_opens_and_closes.options = PHONE;
