/**
 * One message on screen: who, what, and what can be done with it. Parts are remade only when what they show has changed,
 * so that a streaming answer touches nothing but its own text, and focus and selection elsewhere survive.
 *
 * @typedef {import("./tree.js").Message} Message
 * @typedef {import("./tree.js").Conversation} Conversation
 */
import { tokensPerSecond } from "./answer.js";
import { toast } from "./dialogs.js";
import { copyText, h, icon, iconButton, uniqueId } from "./dom.js";
import { beginEditing, editForm } from "./editform.js";
import { count, seconds } from "./format.js";
import { MarkdownView } from "./markdown.js";
import { fullText } from "./request.js";
import { t } from "./strings.js";
import { TokenList } from "./tokenlist.js";
import { pretty, toolCard, toolResult } from "./toolcard.js";
import { openCalls, siblings } from "./tree.js";

const THINKING = /^\s*<think>([\s\S]*?)(?:<\/think>|$)/; // Qwen3 writes its reasoning into the text

/** Reasoning and answer of a message. @param {Message} message @param {boolean} markup whether <think> is looked for */
function split(message, markup) {
  const found = markup ? THINKING.exec(message.content) : null;
  return {
    reasoning: [message.reasoning, found?.[1]].filter(Boolean).join("\n").trim(),
    text: found ? message.content.slice(found[0].length) : message.content,
  };
}

/** @param {Message} message @returns {string} what happened to an answer, in words */
export function outcome(message) {
  const said = {
    length: t("endedLength"),
    stopped: t("endedStopped"),
    content_filter: t("endedFilter"),
    error: t(
      /** @type {any} */ (
        { offline: "errorOffline", slow: "errorSlow", loading: "errorLoading", auth: "errorAuth" }[
          message.error ?? ""
        ] ?? "errorServer"
      ),
      { message: message.error ?? "" },
    ),
  };
  return said[/** @type {keyof typeof said} */ (message.finish)] ?? "";
}

/** @param {Message} message @returns {string} its text, or the calls where it only calls */
const copyable = (message) =>
  fullText(message) ||
  (message.tool_calls ?? []).map((call) => `${call.function.name} ${pretty(call.function.arguments)}`).join("\n");

/** The view of one message. */
export class MessageView {
  /** What the remade parts last showed, to tell whether they must be remade. @type {Record<string, string>} */
  #shown = {};
  showTokens = false;
  /** @type {HTMLDetailsElement | null} */
  thinking = null;

  /** @param {import("./thread.js").Thread} thread @param {Message} message */
  constructor(thread, message) {
    this.thread = thread;
    this.message = message;
    const heading = uniqueId("message");
    this.name = h("h2", { id: heading, class: message.role === "user" ? "offscreen" : "speaker" });
    this.extra = h("div", { class: "extra" });
    this.body = h("div", { class: "body" });
    this.cards = h("div", { class: "cards" });
    this.tokenArea = h("div", { hidden: true });
    this.note = h("div", { class: "note", hidden: true });
    this.actions = h("div", { class: "actions" });
    this.meta = h("span", { class: "meta" });
    this.foot = h("div", { class: "foot" }, this.actions, this.meta);
    this.element = h(
      "article",
      { class: `message ${message.role}`, "aria-labelledby": heading },
      this.name,
      this.extra,
      this.body,
      this.tokenArea,
      this.cards,
      this.note,
      this.foot,
    );
    this.markdown = new MarkdownView(this.body);
  }

  /** @param {string} part @param {any[]} values @returns {boolean} whether they differ from the last time */
  #changed(part, ...values) {
    const now = JSON.stringify(values);
    const changed = this.#shown[part] !== now;
    this.#shown[part] = now;
    return changed;
  }

  /** Brings the view up to date. @param {Message[]} shown the path on screen */
  update(shown) {
    const { message } = this;
    const running = message.finish === "running";
    this.element.classList.toggle("running", running);
    if (this.#changed("name", message.model)) {
      const names = { user: t("you"), assistant: message.model || t("assistant"), tool: t("tool") };
      this.name.textContent = names[message.role];
    }
    this.#updateText(shown, running);
    this.#updateCards(shown, running);
    this.#updateNote(shown, running);
    this.#updateFoot(shown, running);
  }

  /** @param {Message[]} shown @param {boolean} running */
  #updateText(shown, running) {
    const { message } = this;
    if (message.role === "tool") {
      if (!this.#changed("text", message.content)) return;
      const calls = shown.flatMap((other) => other.tool_calls ?? []);
      this.body.replaceChildren(
        toolResult(message, calls.find((call) => call.id === message.tool_call_id)?.function.name ?? t("unknown")),
      );
      return;
    }
    const { reasoning, text } = split(message, message.role === "assistant");
    if (this.#changed("extra", reasoning, message.attachments?.length)) {
      const thinking = (this.thinking ??= h(
        "details",
        { class: "thinking" },
        h("summary", {}, t("thinking")),
        h("p", {}),
      ));
      thinking.lastElementChild.textContent = reasoning;
      const files = (message.attachments ?? []).map((file) =>
        h(
          "details",
          { class: "attachment" },
          h("summary", {}, icon("file"), file.name),
          h("pre", { tabIndex: 0 }, h("code", {}, file.text)),
        ),
      );
      if (reasoning && !thinking.isConnected) this.extra.append(thinking);
      this.extra.append(...files);
    }
    if (message.role === "user") {
      if (this.#changed("text", text)) this.body.textContent = text;
      this.body.hidden = !text;
    } else if (this.#changed("text", text)) this.markdown.update(text);
    this.body.classList.toggle("cursor", running && Boolean(text));
  }

  /** @param {Message[]} shown @param {boolean} running */
  #updateCards(shown, running) {
    const { message } = this;
    const calls = message.tool_calls ?? [];
    const open = running ? [] : openCalls(shown, message);
    if (
      !this.#changed(
        "cards",
        calls,
        open.map((call) => call.id),
      )
    )
      return;
    this.cards.replaceChildren(
      ...calls.map((call) =>
        toolCard(call, open.includes(call) ? (result) => this.thread.addResult(message, call, result) : null),
      ),
    );
  }

  /** @param {Message[]} shown @param {boolean} running */
  #updateNote(shown, running) {
    const { message } = this;
    const last = shown.at(-1) === message;
    const waiting = running && !message.content && !message.tool_calls && !message.reasoning;
    const waited = waiting ? Math.floor(this.thread.waitedMs() / 1000) : 0;
    const text = waiting ? t("reading", { seconds: count(waited) }) : outcome(message);
    if (!this.#changed("note", text, last)) return;
    this.note.hidden = !text;
    this.note.className = `note ${message.finish === "error" ? "failed" : ""} ${waiting ? "waiting" : ""}`;
    const canContinue =
      last && message.content && !message.tool_calls && ["length", "stopped", "error"].includes(message.finish ?? "");
    this.note.replaceChildren(
      ...(message.finish === "error" ? [icon("warning")] : []),
      h("span", {}, text),
      ...(canContinue
        ? [iconButton("forward", t("continue"), () => this.thread.resume(message), { text: true, class: "small" })]
        : []),
      ...(last && message.finish === "error"
        ? [iconButton("redo", t("retry"), () => this.thread.again(message), { text: true, class: "small" })]
        : []),
    );
  }

  /** @param {Message[]} shown @param {boolean} running */
  #updateFoot(shown, running) {
    const { message, thread } = this;
    const others = siblings(thread.conversation, message);
    const at = others.indexOf(message);
    const hasText = message.role === "assistant" && Boolean(message.content || message.tokens?.length);
    if (this.#changed("actions", running, thread.busy, at, others.length, hasText, this.showTokens)) {
      const copy = iconButton("copy", t("copyMessage"), async () =>
        toast((await copyText(copyable(message))) ? t("copied") : t("copyFailed")),
      );
      const again =
        message.role === "assistant"
          ? iconButton("redo", t("regenerate"), () => thread.again(message), { disabled: thread.busy })
          : null;
      const edit =
        message.role === "assistant"
          ? null
          : iconButton("edit", t("edit"), () => this.#edit(), { disabled: thread.busy });
      const tokens = hasText ? iconButton("tokens", t("tokenView"), () => this.#toggleTokens()) : null;
      tokens?.setAttribute("aria-pressed", String(this.showTokens));
      const parts = [this.#branches(others, at), ...(running ? [] : [copy, again, edit, tokens])];
      this.actions.replaceChildren(...parts.filter(Boolean));
    }
    const { usage } = message;
    const rate = tokensPerSecond(message, thread.counted(message));
    const facts = [
      usage ? t("tokenCount", { count: count(usage.completion_tokens) }) : "",
      rate ? t("rate", { rate: count(rate, 1) }) : "",
      usage && message.first_ms !== undefined ? t("firstToken", { seconds: seconds(message.first_ms) }) : "",
    ].filter(Boolean);
    if (this.#changed("meta", facts)) this.meta.textContent = facts.join(" · ");
  }

  /** @param {Message[]} others @param {number} at */
  #branches(others, at) {
    if (others.length < 2) return null;
    const { thread } = this;
    const go = (/** @type {number} */ step, /** @type {"left" | "right"} */ side) =>
      iconButton(
        side,
        t(side === "left" ? "previousVersion" : "nextVersion"),
        () => thread.showBranch(others[at + step], side),
        {
          disabled: !others[at + step],
          class: `branch-${side}`,
        },
      );
    const place = h(
      "span",
      { class: "branch-place" },
      h("span", { class: "offscreen" }, t("version")),
      `${at + 1}/${others.length}`,
    );
    return h("span", { class: "branches" }, go(-1, "left"), place, go(1, "right"));
  }

  #edit() {
    const { message, element } = this;
    const leave = () => {
      form.remove();
      element.classList.remove("editing");
      this.actions.querySelector("button:not(:disabled)")?.focus();
    };
    const send = (/** @type {string} */ text) => {
      leave();
      if (text.trim()) this.thread.edit(message, text);
    };
    const form = editForm(message.content, send, leave);
    element.classList.add("editing");
    this.body.before(form);
    beginEditing(form);
  }

  async #toggleTokens() {
    this.showTokens = !this.showTokens;
    this.thread.updateMessage(this.message);
    this.actions.querySelector("[aria-pressed]")?.focus();
    this.tokenArea.hidden = this.body.hidden = false;
    if (!this.showTokens) {
      this.tokenArea.hidden = true;
      this.tokenArea.replaceChildren();
      return;
    }
    const scored = Boolean(this.message.tokens?.length);
    const list = new TokenList({ scored });
    this.body.hidden = true;
    this.tokenArea.replaceChildren(
      h("p", { class: "hint" }, t(scored ? "tokensScored" : "tokensUnscored")),
      list.element,
    );
    try {
      list.show(this.message.tokens?.length ? this.message.tokens : await this.thread.tokensOf(this.message.content));
    } catch {
      this.tokenArea.replaceChildren(h("p", { class: "hint" }, t("tokenizeFailed")));
    }
  }
}
