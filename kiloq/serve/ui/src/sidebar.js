/*
 * The list of conversations: search, choose, rename, delete, export. On narrow screens it is a drawer, which shell.js
 * opens and closes.
 */
import { ask, confirm } from "./dialogs.js";
import { h, icon, iconButton, uniqueId } from "./dom.js";
import { count, period } from "./format.js";
import { menuButton } from "./menu.js";
import { t } from "./strings.js";
import { exportJSON, exportMarkdown, importJSON } from "./transfer.js";
import { MAX_NAME } from "./validate.js";

/** @typedef {import("./tree.js").Conversation} Conversation */

/** The navigation landmark. */
export class Sidebar {
  /** @param {import("./main.js").App} app @param {() => void} onchoose called when a conversation was chosen @param {AbortSignal} signal */
  constructor(app, onchoose, signal) {
    this.app = app;
    this.onchoose = onchoose;
    const id = uniqueId("search");
    this.search = h("input", {
      id,
      type: "search",
      class: "field",
      placeholder: t("search"),
      oninput: () => this.render(),
    });
    this.found = h("p", { class: "offscreen", role: "status" });
    this.list = h("div", { class: "conversations" });
    this.element = h(
      "nav",
      { class: "sidebar", id: "sidebar", "aria-label": t("conversations") },
      h(
        "div",
        { class: "brand" },
        h("img", { src: "/ui/icon.svg", alt: "", width: 26, height: 26 }),
        h("span", {}, "kiloq"),
      ),
      iconButton("plus", t("newChat"), () => this.#choose(null), { text: true, class: "new-chat" }),
      h(
        "div",
        { class: "search" },
        icon("search"),
        h("label", { for: id, class: "offscreen" }, t("searchLabel")),
        this.search,
      ),
      this.found,
      this.list,
      h(
        "div",
        { class: "sidebar-foot" },
        iconButton("tokens", t("tokenizer"), () => app.openTokenizer(), { text: true }),
        iconButton("upload", t("import"), () => importJSON(app.library), { text: true }),
        iconButton("download", t("exportAll"), () => exportJSON(app.library.list()), { text: true }),
      ),
    );
    // "toggle" does not bubble: it is caught on its way down.
    this.list.addEventListener("toggle", () => this.late && this.render(), { capture: true });
    app.library.addEventListener("list", () => this.render(), { signal });
    app.library.addEventListener("select", () => this.render(), { signal });
    app.runner.addEventListener("state", () => this.render(), { signal });
    this.render();
  }

  /** @param {string | null} id */
  #choose(id) {
    this.app.library.select(id);
    this.onchoose();
  }

  render() {
    this.late = Boolean(this.list.querySelector(":popover-open")); // an open menu must not vanish under the reader's hand
    if (this.late) return;
    const query = this.search.value;
    const conversations = this.app.library.list(query);
    const focused = this.list.contains(document.activeElement) ? document.activeElement : null;
    const focusedId = focused?.closest("li")?.querySelector("[data-id]")?.getAttribute("data-id");
    const parts = byPeriod(conversations);
    this.list.replaceChildren(
      ...[...parts].map(([name, members]) => {
        const heading = uniqueId("period");
        return h(
          "section",
          { "aria-labelledby": heading },
          h("h2", { id: heading }, t(name)),
          h("ul", {}, ...members.map((one) => this.#item(one))),
        );
      }),
    );
    if (!conversations.length)
      this.list.append(h("p", { class: "hint" }, t(query.trim() ? "nothingFound" : "noConversations")));
    this.found.textContent = query.trim() ? t("found", { count: count(conversations.length) }) : "";
    const again = focusedId && this.list.querySelector(`[data-id="${focusedId}"]`);
    if (again)
      /** @type {any} */ (
        focused?.matches("[aria-haspopup]") ? again.parentElement?.querySelector("[aria-haspopup]") : again
      ).focus();
  }

  /** @param {Conversation} conversation */
  #item(conversation) {
    const { app } = this;
    const { id } = conversation;
    const current = conversation === app.library.current;
    const title = conversation.title || t("untitled");
    const running = Boolean(app.runner.run(conversation));
    return h(
      "li",
      { class: current ? "current" : undefined },
      h(
        "button",
        {
          type: "button",
          class: "conversation",
          "data-id": id,
          "aria-current": current ? "page" : undefined,
          onclick: () => this.#choose(id),
        },
        h("span", { class: "title", dir: "auto" }, title),
        running ? h("span", { class: "pulse" }, h("span", { class: "offscreen" }, t("answering"))) : null,
      ),
      menuButton(t("menuOf", { title }), [
        { icon: "edit", label: t("rename"), action: () => this.#rename(conversation) },
        { icon: "download", label: t("exportJSON"), action: () => exportJSON([conversation]) },
        { icon: "file", label: t("exportMarkdown"), action: () => exportMarkdown(conversation) },
        { icon: "trash", label: t("delete"), danger: true, action: () => this.#remove(conversation) },
      ]),
    );
  }

  /** @param {Conversation} conversation */
  async #rename(conversation) {
    const title = await ask({
      title: t("renameTitle"),
      label: t("titleLabel"),
      value: conversation.title,
      most: MAX_NAME,
    });
    if (title !== null) this.app.library.rename(conversation.id, title);
    /** @type {any} */ (this.list.querySelector(`[data-id="${conversation.id}"]`))?.focus();
  }

  /** @param {Conversation} conversation */
  async #remove(conversation) {
    if (
      !(await confirm(
        t("deleteTitle"),
        t("deleteQuestion", { title: conversation.title || t("untitled") }),
        t("delete"),
      ))
    )
      return;
    this.app.runner.stop(conversation);
    await this.app.library.remove([conversation.id]);
    this.search.focus();
  }
}

/** @param {Conversation[]} conversations newest first */
function byPeriod(conversations) {
  /** @type {Map<ReturnType<typeof period>, Conversation[]>} */
  const parts = new Map();
  for (const one of conversations) {
    const name = period(one.updated);
    parts.set(name, [...(parts.get(name) ?? []), one]);
  }
  return parts;
}
