/*
 * What the browser checks share: a page that counts everything it must not do (requests to other origins, breaches of the
 * policy, script errors, dialogs), and the few gestures they all need. Waiting is always for something visible, never for a
 * time.
 */
import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const FLAGS = [
  "--no-sandbox",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--disable-quic",
];
const WAIT_MS = 10_000;

/** @param {string} executablePath */
export const launch = (executablePath) => chromium.launch({ executablePath, args: FLAGS });

/** The stub's side door. */
export class Stub {
  constructor(base) {
    this.base = base;
  }
  async seen() {
    return (await fetch(`${this.base}/_stub`)).json();
  }
  async set(values) {
    await fetch(`${this.base}/_stub`, { method: "POST", body: JSON.stringify(values) });
  }
  async lastRequest() {
    return (await this.seen()).requests.at(-1);
  }
}

/** A browser context with one page, and what it did wrong. */
export class Visit {
  faults = [];

  /** `options` of the context and `settings` of the page are properties that a check may have. */
  static async open(browser, stub, { options = {}, settings = {} } = {}) {
    const visit = new Visit();
    visit.stub = stub;
    visit.context = await browser.newContext({ viewport: { width: 1280, height: 800 }, locale: "en-US", ...options });
    visit.context.setDefaultTimeout(WAIT_MS);
    await visit.context.addInitScript(() => {
      addEventListener("securitypolicyviolation", (event) =>
        console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`),
      );
    });
    await visit.context.addInitScript(
      (stored) => (localStorage["kiloq.settings"] ??= stored),
      JSON.stringify(settings),
    );
    visit.page = await visit.newPage();
    return visit;
  }

  async newPage() {
    const page = await this.context.newPage();
    page.on("request", (request) => {
      const url = request.url();
      if (!url.startsWith(`${this.stub.base}/`) && !/^(data|blob):/.test(url)) this.faults.push(`request to ${url}`);
    });
    page.on("console", (message) => {
      // Chromium itself logs failed responses, which some checks cause on purpose.
      if (message.type() === "error" && !message.text().startsWith("Failed to load resource"))
        this.faults.push(`console: ${message.text()}`);
    });
    page.on("pageerror", (error) => this.faults.push(`error: ${error.stack}`));
    page.on("dialog", (dialog) => {
      this.faults.push(`dialog: ${dialog.message()}`);
      dialog.dismiss();
    });
    await page.goto(`${this.stub.base}/`);
    await page.locator(".composer textarea").waitFor();
    return page;
  }

  async close() {
    const pwned = await this.page.evaluate(() => "pwned" in window);
    await this.context.close();
    assert.equal(pwned, false, "a script from untrusted text ran");
    assert.deepEqual(this.faults, []);
  }

  /** Types a message, sends it, and waits for the whole answer unless told not to. */
  async say(text, { wait = true } = {}) {
    await this.page.locator(".composer textarea").fill(text);
    await this.page.locator(".composer .send:not(:disabled)").waitFor();
    await this.page.locator(".composer textarea").press("Enter");
    if (wait) await this.answered();
  }

  async answered() {
    await this.page.locator(".message.running").waitFor({ state: "detached" });
    await this.page.locator(".message.assistant").last().locator(".actions button").first().waitFor();
  }

  answer() {
    return this.page.locator(".message.assistant").last();
  }

  /** Chooses files in the chooser that an action opens. */
  async choose(action, files) {
    const chooser = this.page.waitForEvent("filechooser");
    await action();
    await (await chooser).setFiles(files);
  }

  /** The text of the file that an action downloads. */
  async downloaded(action) {
    const download = this.page.waitForEvent("download");
    await action();
    const chunks = [];
    for await (const chunk of await (await download).createReadStream()) chunks.push(chunk);
    return Buffer.concat(chunks).toString("utf8");
  }
}

/** Waits until a function of the stub or page says true. */
export async function until(condition, what) {
  const end = Date.now() + WAIT_MS;
  while (!(await condition())) {
    assert.ok(Date.now() < end, `not within ${WAIT_MS} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
