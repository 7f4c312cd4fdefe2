/*
 * The box to write in. Enter sends and Shift+Enter breaks the line, but not while an input method is composing: Enter then
 * belongs to the input method. Text files come by button, drop or paste and stay beside the text. Drafts are kept for each
 * conversation while the page is open.
 */
import { toast } from "./dialogs.js";
import { h, icon, iconButton, pickFiles, uniqueId } from "./dom.js";
import { isSend } from "./editform.js";
import { count } from "./format.js";
import { t } from "./strings.js";
import { path } from "./tree.js";
import { MAX_NAME } from "./validate.js";

const MAX_FILE_BYTES = 1_000_000; // ours: several times any context that fits a laptop
const MAX_FILES = 10;
const MAX_HEIGHT = 0.4; // of the window

/** @typedef {import("./tree.js").Attachment} Attachment */
/** @typedef {{text: string, files: Attachment[]}} Draft */

/** @type {Map<string, Draft>} */
const drafts = new Map();

/** @param {File} file @returns {Promise<Attachment>} @throws {Error} where it is no text or too long */
async function readText(file) {
  if (file.size > MAX_FILE_BYTES)
    throw new Error(t("fileTooLong", { name: file.name, most: count(MAX_FILE_BYTES / 1000) }));
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    if (text.includes("\0")) throw new Error("binary");
    return { name: file.name.slice(0, MAX_NAME), text };
  } catch {
    throw new Error(t("fileNotText", { name: file.name }));
  }
}

/** The form at the bottom of the page. */
export class Composer {
  /** @param {import("./main.js").App} app @param {import("./thread.js").Thread} thread @param {AbortSignal} signal */
  constructor(app, thread, signal) {
    this.app = app;
    this.thread = thread;
    const id = uniqueId("prompt");
    this.input = h("textarea", {
      id,
      rows: 1,
      placeholder: t("placeholder"),
      enterKeyHint: "send",
      oninput: () => this.grow(),
    });
    this.files = h("ul", { class: "files", "aria-label": t("attachedFiles") });
    this.send = iconButton("send", t("send"), () => this.#submit(), { class: "primary round send" });
    this.stop = iconButton("stop", t("stop"), () => app.runner.stop(thread.conversation), {
      class: "primary round stop",
    });
    this.hint = h("span", { class: "hint wide-only" }, t("keysHint"));
    this.context = h("div", { class: "context" });
    const box = h(
      "div",
      { class: "box" },
      this.files,
      h("label", { for: id, class: "offscreen" }, t("promptLabel")),
      this.input,
      h(
        "div",
        { class: "box-row" },
        iconButton("attach", t("attach"), () => this.#pick()),
        this.hint,
        h("span", { class: "space" }),
        this.context,
        this.send,
        this.stop,
      ),
    );
    this.element = h(
      "form",
      {
        class: "composer",
        "aria-label": t("compose"),
        onsubmit: (/** @type {Event} */ event) => event.preventDefault(),
      },
      box,
    );
    this.#listen(signal);
    this.#load();
  }

  /** @param {AbortSignal} signal */
  #listen(signal) {
    const { library, runner, server } = this.app;
    this.input.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (!isSend(event)) return;
      event.preventDefault();
      this.#submit();
    });
    this.input.addEventListener("paste", (/** @type {ClipboardEvent} */ event) =>
      this.#take(event, event.clipboardData?.files),
    );
    this.element.addEventListener("dragover", (/** @type {DragEvent} */ event) => event.preventDefault());
    this.element.addEventListener("drop", (/** @type {DragEvent} */ event) =>
      this.#take(event, event.dataTransfer?.files),
    );
    library.addEventListener("select", () => this.#load(), { signal });
    runner.addEventListener("state", () => this.#update(), { signal });
    server.addEventListener("change", () => this.#update(), { signal });
    this.app.settings.addEventListener("change", () => this.#update(), { signal });
    library.addEventListener("list", () => this.#updateContext(), { signal });
  }

  get draft() {
    const { id } = this.app.library.current;
    const draft = drafts.get(id) ?? { text: "", files: [] };
    drafts.set(id, draft);
    return draft;
  }

  #load() {
    this.input.value = this.draft.text;
    this.grow();
    this.#update();
  }

  /** Fits the box to its text; needs a place in the document to measure. */
  grow() {
    this.draft.text = this.input.value;
    this.input.style.height = "auto";
    this.input.style.height = `${Math.min(this.input.scrollHeight, innerHeight * MAX_HEIGHT)}px`;
    this.#updateButtons();
  }

  #updateButtons() {
    const { busy } = this.thread;
    const focused = document.activeElement === this.send || document.activeElement === this.stop;
    this.send.hidden = busy;
    this.stop.hidden = !busy;
    const { text, files } = this.draft;
    this.send.disabled = !this.app.server.models.length || !(text.trim() || files.length);
    if (focused) (busy ? this.stop : this.input).focus(); // the button that had the focus is gone
  }

  #update() {
    const { files } = this.draft;
    this.files.hidden = !files.length;
    this.files.replaceChildren(
      ...files.map((file) =>
        h(
          "li",
          {},
          icon("file"),
          h("span", {}, file.name),
          iconButton("close", t("removeFile", { name: file.name }), () => this.#remove(file), { class: "small" }),
        ),
      ),
    );
    this.#updateButtons();
    this.#updateContext();
  }

  /** How full the context is, after the last answer that says so. */
  #updateContext() {
    const { server, settings, library } = this.app;
    const most = server.contextOf(settings.values.model);
    const usage = path(library.current).findLast((message) => message.usage)?.usage;
    this.context.hidden = !usage || !most;
    if (!usage || !most) return;
    const used = usage.prompt_tokens + usage.completion_tokens;
    const text = t("contextUsed", { used: count(used), most: count(most) });
    const bar = h("span", {
      class: "context-bar",
      role: "meter",
      "aria-label": text,
      "aria-valuemin": 0,
      "aria-valuemax": most,
      "aria-valuenow": Math.min(used, most),
    });
    bar.style.setProperty("--p", String(Math.min(1, used / most)));
    bar.classList.toggle("full", used > 0.9 * most);
    this.context.replaceChildren(bar, h("span", {}, text));
  }

  async #pick() {
    await this.#attach(await pickFiles("", true));
    this.input.focus();
  }

  /** @param {Event} event @param {FileList | undefined} files */
  #take(event, files) {
    if (!files?.length) return;
    event.preventDefault();
    this.#attach([...files]);
  }

  /** @param {File[]} files */
  async #attach(files) {
    const { draft } = this;
    for (const file of files) {
      try {
        if (draft.files.length >= MAX_FILES) throw new Error(t("tooManyFiles", { most: count(MAX_FILES) }));
        draft.files.push(await readText(file));
      } catch (error) {
        toast(/** @type {Error} */ (error).message);
      }
    }
    this.#update();
  }

  /** @param {Attachment} file */
  #remove(file) {
    this.draft.files = this.draft.files.filter((other) => other !== file);
    this.#update();
    this.input.focus();
  }

  #submit() {
    this.#updateButtons();
    const { text, files } = this.draft;
    if (!this.app.server.models.length && text.trim()) toast(t("notReady"));
    if (this.send.disabled || this.thread.busy) return;
    drafts.delete(this.app.library.current.id);
    this.thread.send(text.trim(), files);
    this.#load();
  }

  /** Puts a text in the box. @param {string} text */
  fill(text) {
    this.input.value = text;
    this.grow();
    this.input.focus();
  }
}
