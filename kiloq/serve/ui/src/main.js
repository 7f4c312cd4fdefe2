/*
 * Start: the parts are made, connected and shown. The order matters once: settings first, because they choose the language,
 * then the conversations, so that the first frame already shows the one the address names.
 */
import { setKey } from "./api.js";
import { ask } from "./dialogs.js";
import { Library } from "./library.js";
import { Announcer } from "./live.js";
import { Runner } from "./runner.js";
import { Server } from "./server.js";
import { Settings } from "./settings.js";
import { openSettings } from "./settingsdialog.js";
import { buildShell } from "./shell.js";
import { t } from "./strings.js";
import { openTokenizer } from "./tokenizer.js";
import { path } from "./tree.js";

/** What the parts of the page share. */
export class App {
  settings = new Settings();
  library = new Library(this.settings.values);
  runner = new Runner(this.library, this.settings);
  server = new Server();
  announcer = new Announcer();
  #asking = false;

  async start() {
    await this.library.open();
    this.#build();
    // Not on phones, where it would bring up the keyboard over half the page.
    if (matchMedia("(min-width: 761px) and (pointer: fine)").matches) this.composer?.input.focus();
    this.settings.addEventListener("language", () => this.#translate());
    this.server.addEventListener("change", () => this.#serverChanged());
    this.runner.addEventListener("auth", () => this.askKey());
    this.runner.addEventListener("state", (/** @type {any} */ event) => {
      if (["offline", "slow", "loading"].includes(event.detail.error)) this.server.check();
    });
    this.server.watch();
  }

  #build() {
    this.listeners?.abort();
    this.listeners = new AbortController();
    this.announcer = new Announcer();
    const root = /** @type {HTMLElement} */ (document.getElementById("app"));
    this.composer = buildShell(this, root, this.listeners.signal);
  }

  /** The language is chosen in the settings, of this tab or another: where they were open they come back in it. */
  #translate() {
    const chosenHere = document.querySelector("dialog.settings[open]");
    for (const dialog of document.querySelectorAll("dialog")) dialog.close();
    this.#build();
    if (!chosenHere) return;
    const selects = openSettings(this).querySelectorAll("select");
    selects[selects.length - 1].focus();
  }

  #serverChanged() {
    const { state, models } = this.server;
    if (state === "auth") this.askKey();
    if (models.length && !models.some((model) => model.id === this.settings.values.model))
      this.settings.update({ model: models[0].id });
  }

  /** Asks for the API key, then tries again what failed for want of it. */
  async askKey() {
    if (this.#asking) return;
    this.#asking = true;
    const key = await ask({ title: t("keyTitle"), label: t("keyLabel"), hint: t("keyHint"), secret: true });
    this.#asking = false;
    if (key === null) return;
    setKey(key.trim());
    await this.server.check();
    const last = path(this.library.current).at(-1);
    if (this.server.state === "ready" && last?.error === "auth") this.runner.again(this.library.current, last);
  }

  /** Puts a text in the box to write in. @param {string} text */
  fill(text) {
    this.composer?.fill(text);
  }

  openSettings() {
    openSettings(this);
  }

  openTokenizer() {
    openTokenizer(this);
  }
}

new App().start();
