/*
 * A server that refuses, fails in mid-answer, loads, is gone or locked; a browser that keeps nothing; two tabs.
 */
import assert from "node:assert/strict";

export async function errors_keep_what_came_and_can_be_retried(visit) {
  const { page } = visit;
  await visit.say("break");
  assert.match(await visit.answer().locator(".note.failed").textContent(), /ran out of memory/);
  assert.match(await visit.answer().locator(".body").textContent(), /Half an answ/);
  await visit.say("refuse me");
  assert.match(await visit.answer().locator(".note.failed").textContent(), /9 is more than 2/);
  await visit.answer().getByRole("button", { name: "Try again" }).click();
  await visit.answered();
  assert.equal(await visit.answer().locator(".branches").count(), 0);
  await page.route("**/v1/chat/completions", (route) => route.abort());
  await visit.say("gone");
  assert.match(await visit.answer().locator(".note.failed").textContent(), /connection to the server was lost/);
}

export async function a_loading_or_absent_server_is_shown(visit) {
  const { page, stub } = visit;
  await stub.set({ loading: true });
  await page.reload();
  await page.locator(".notice", { hasText: "loading its model" }).waitFor();
  await page.locator(".composer textarea").fill("written while loading");
  await page.locator(".composer textarea").press("Enter");
  await stub.set({ loading: false });
  await page.locator(".notice", { hasText: "loading" }).waitFor({ state: "hidden" });
  await page.locator(".composer textarea").press("Enter");
  await visit.answered();
  await page.route("**/health", (route) => route.abort());
  await page.evaluate(() => dispatchEvent(new Event("online")));
  await page.locator(".notice", { hasText: "cannot be reached" }).waitFor();
  await page.unroute("**/health");
  await page.getByRole("button", { name: "Try now" }).click();
  await page.locator(".notice", { hasText: "cannot be reached" }).waitFor({ state: "hidden" });
}

export async function a_key_is_asked_for_and_kept_in_the_tab(visit) {
  const { page, stub } = visit;
  await stub.set({ key: "secret" });
  try {
    await page.reload();
    await page.getByLabel("This server asks for a key").fill("wrong");
    await page.keyboard.press("Enter");
    await page.getByLabel("This server asks for a key").fill("secret");
    await page.keyboard.press("Enter");
    await visit.say("hello");
    await page.reload();
    await visit.say("hello again");
    assert.equal(await page.evaluate(() => JSON.stringify(localStorage).includes("secret")), false);
  } finally {
    await stub.set({ key: null });
  }
}

export async function without_indexeddb_a_notice_says_so(visit) {
  await visit.context.addInitScript(() => {
    indexedDB.open = () => {
      throw new DOMException("forbidden", "SecurityError");
    };
  });
  await visit.page.reload();
  await visit.page.locator(".notice", { hasText: "they are lost when it is closed" }).waitFor();
  await visit.say("still works");
}

export async function two_tabs_agree(visit) {
  const other = await visit.newPage();
  await visit.say("from the first tab");
  await other.locator(".conversation", { hasText: "from the first tab" }).click();
  await other.locator(".message.assistant").waitFor();
}
