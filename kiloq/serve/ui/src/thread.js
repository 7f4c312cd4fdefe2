/**
 * The conversation on screen. Views are kept by message id and put in the order of the path, so switching a branch or
 * adding an answer moves and adds elements and does not rebuild those that stay. New text is drawn at most once a frame, and
 * less often when drawing is slow; the view follows the end of the answer only while the reader is there.
 *
 * @typedef {import("./tree.js").Message} Message
 * @typedef {import("./tree.js").Conversation} Conversation
 */
import { h, iconButton } from "./dom.js";
import { MessageView, outcome } from "./message.js";
import { t } from "./strings.js";
import { tokensOf } from "./tokens.js";
import { add, openCalls, path, show } from "./tree.js";

const NEAR_END_PX = 80;
const TICK_MS = 1_000;
const LEAST_PAUSE_MS = 40;

/** The scrolling part of the page. */
export class Thread {
  /** @type {Map<string, MessageView>} */
  #views = new Map();
  #drawAt = 0;
  #pending = false;

  /** @param {import("./main.js").App} app @param {AbortSignal} signal ends the listeners */
  constructor(app, signal) {
    this.app = app;
    this.conversation = app.library.current;
    this.list = h("div", { class: "messages" });
    this.empty = h("div", { class: "empty" });
    this.jump = iconButton("down", t("toEnd"), () => this.#toEnd(), { class: "jump" });
    this.element = h(
      "main",
      { id: "thread", class: "thread", tabIndex: -1, "aria-label": t("conversation") },
      this.empty,
      this.list,
      this.jump,
    );
    const { library, runner } = app;
    library.addEventListener("select", () => this.render(), { signal });
    library.addEventListener(
      "change",
      (/** @type {any} */ event) =>
        event.detail === this.conversation.id && !runner.run(this.conversation) && this.render(),
      { signal },
    );
    runner.addEventListener("state", (/** @type {any} */ event) => this.#state(event.detail), { signal });
    runner.addEventListener("text", (/** @type {any} */ event) => this.#text(event.detail), { signal });
    this.element.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    const tick = setInterval(() => this.busy && this.#redraw(), TICK_MS);
    signal.addEventListener("abort", () => clearInterval(tick));
    this.render();
  }

  get busy() {
    return Boolean(this.app.runner.run(this.conversation));
  }

  waitedMs() {
    const run = this.app.runner.run(this.conversation);
    return run ? run.answer.now() - run.answer.started : 0;
  }

  /** @param {Message} message @returns {number | undefined} tokens seen of a running answer */
  counted(message) {
    const run = this.app.runner.run(this.conversation);
    return run?.answer.message === message ? run.answer.chunks : undefined;
  }

  render() {
    const { current } = this.app.library;
    const switched = current !== this.conversation;
    const atEnd = this.#atEnd();
    this.conversation = current;
    if (switched) this.#views.clear();
    const shown = path(current);
    const views = shown.map((message) => {
      const view = this.#views.get(message.id);
      if (view && view.message === message) return view;
      const fresh = new MessageView(this, message);
      this.#views.set(message.id, fresh);
      return fresh;
    });
    const wanted = views.map((view) => view.element);
    for (const child of [...this.list.children]) if (!wanted.includes(/** @type {any} */ (child))) child.remove();
    wanted.forEach(
      (element, index) =>
        this.list.children[index] !== element && this.list.insertBefore(element, this.list.children[index] ?? null),
    );
    for (const view of views) view.update(shown);
    this.#renderEmpty(shown.length === 0);
    if (switched || atEnd) this.#toEnd();
    this.#scrolled();
  }

  /** @param {boolean} isEmpty */
  #renderEmpty(isEmpty) {
    this.empty.hidden = !isEmpty;
    this.list.hidden = isEmpty;
    if (!isEmpty || this.empty.childElementCount) return;
    const examples = /** @type {const} */ (["example1", "example2", "example3", "example4"]);
    this.empty.append(
      h("div", { class: "mark", "aria-hidden": "true" }),
      h("h2", {}, t("emptyTitle")),
      h("p", {}, t("emptyText")),
      h(
        "ul",
        { class: "examples" },
        ...examples.map((name) =>
          h(
            "li",
            {},
            h("button", { type: "button", class: "example", onclick: () => this.app.fill(t(name)) }, t(name)),
          ),
        ),
      ),
    );
  }

  /** @param {Message} message whose answer started or ended */
  #state(message) {
    const here = this.conversation.messages.includes(message);
    if (!here) return;
    this.render();
    if (message.finish === "running") {
      this.app.announcer.begin();
      this.#toEnd();
    } else {
      this.app.announcer.end(message.content, outcome(message) || t("answerFinished"));
    }
  }

  /** @param {Message} message that grew */
  #text(message) {
    if (!this.conversation.messages.includes(message)) return;
    this.app.announcer.progress(message.content);
    if (this.#pending) return;
    this.#pending = true;
    const wait = Math.max(0, this.#drawAt - performance.now());
    setTimeout(() => requestAnimationFrame(() => this.#redraw()), wait);
  }

  #redraw() {
    this.#pending = false;
    const message = this.app.runner.run(this.conversation)?.answer.message;
    if (!message) return;
    const atEnd = this.#atEnd();
    const started = performance.now();
    this.updateMessage(message);
    if (atEnd) this.#toEnd();
    const took = performance.now() - started;
    this.#drawAt = performance.now() + Math.max(LEAST_PAUSE_MS, 2 * took); // at most a third of the time goes into drawing
  }

  /** @param {Message} message */
  updateMessage(message) {
    this.#views.get(message.id)?.update(path(this.conversation));
  }

  #atEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.element;
    return scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
  }

  #toEnd() {
    this.element.scrollTop = this.element.scrollHeight;
  }

  #scrolled() {
    this.jump.classList.toggle("hidden", this.#atEnd());
  }

  /** @param {string} content @param {import("./tree.js").Attachment[]} attachments */
  send(content, attachments) {
    const { conversation } = this;
    const question = add(conversation, {
      parent: conversation.leaf,
      role: "user",
      content,
      ...(attachments.length ? { attachments } : {}),
    });
    this.app.runner.answer(conversation, question.id);
  }

  /** @param {Message} message @param {string} content */
  edit(message, content) {
    const { role, parent, attachments, tool_call_id } = message;
    const edited = add(this.conversation, {
      role,
      parent,
      content,
      ...(attachments ? { attachments } : {}),
      ...(tool_call_id ? { tool_call_id } : {}),
    });
    this.#answerUnlessOpen(edited);
  }

  /** @param {Message} answer @param {import("./tree.js").ToolCall} call @param {string} content */
  addResult(answer, call, content) {
    const result = add(this.conversation, {
      role: "tool",
      parent: this.conversation.leaf ?? answer.id,
      content,
      tool_call_id: call.id,
    });
    this.#answerUnlessOpen(result);
  }

  /** Asks for the answer to a message, unless calls before it still wait for their results. @param {Message} message */
  #answerUnlessOpen(message) {
    const shown = path(this.conversation);
    const asking = shown.findLast((other) => other.tool_calls?.length);
    if (message.role === "tool" && asking && openCalls(shown, asking).length)
      this.app.library.changed(this.conversation);
    else this.app.runner.answer(this.conversation, message.id);
  }

  /** @param {Message} message */
  again(message) {
    this.app.runner.again(this.conversation, message);
  }

  /** @param {Message} message */
  resume(message) {
    this.app.runner.answer(this.conversation, message.parent, message);
  }

  /** Shows another version of a message; the focus stays on the same arrow. @param {Message} message @param {"left" | "right"} side */
  showBranch(message, side) {
    show(this.conversation, message.id);
    this.app.library.changed(this.conversation);
    this.render();
    const actions = this.#views.get(message.id)?.actions;
    const arrow =
      actions?.querySelector(`.branch-${side}:not(:disabled)`) ??
      actions?.querySelector(".branches button:not(:disabled)");
    arrow?.focus();
  }

  /** @param {string} text */
  async tokensOf(text) {
    return (await tokensOf({ model: this.app.settings.values.model, prompt: text })).tokens;
  }
}
