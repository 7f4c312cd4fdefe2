/*
 * The frame of the page: sidebar, top bar, conversation, composer, and the line that says how the server is. Built anew when
 * the language changes; everything that must survive that lives outside, in the library, the runner and the settings.
 */
import { Composer } from "./composer.js";
import { h, icon, iconButton, uniqueId } from "./dom.js";
import { Sidebar } from "./sidebar.js";
import { t } from "./strings.js";
import { Thread } from "./thread.js";

const NARROW = "(max-width: 760px)";

/** @param {import("./main.js").App} app @param {AbortSignal} signal */
function modelPicker(app, signal) {
  const id = uniqueId("model");
  const select = h("select", { id, class: "model", onchange: () => app.settings.update({ model: select.value }) });
  const render = () => {
    const { models } = app.server;
    select.replaceChildren(...models.map((model) => h("option", { value: model.id }, model.id)));
    if (!models.length) select.append(h("option", { value: "" }, t("noModel")));
    select.disabled = !models.length;
    select.value = app.settings.values.model;
  };
  app.server.addEventListener("change", render, { signal });
  app.settings.addEventListener("change", render, { signal });
  render();
  return h("div", { class: "picker" }, h("label", { for: id, class: "offscreen" }, t("model")), select, icon("down"));
}

/** @param {import("./main.js").App} app @param {AbortSignal} signal */
function notices(app, signal) {
  const server = h("div", { class: "notice", role: "status" });
  const storage = h("div", { class: "notice", role: "status" });
  const said = {
    checking: "",
    ready: "",
    loading: "serverLoading",
    offline: "serverOffline",
    slow: "serverSlow",
    auth: "serverAuth",
    http: "serverTrouble",
  };
  const render = () => {
    const { state, sentence } = app.server;
    const name = /** @type {any} */ (said[state]);
    server.hidden = !name;
    if (!name) return server.replaceChildren();
    const action =
      state === "auth"
        ? h("button", { type: "button", class: "button small", onclick: () => app.askKey() }, t("enterKey"))
        : state === "loading"
          ? null
          : h("button", { type: "button", class: "button small", onclick: () => app.server.check() }, t("tryNow"));
    return server.replaceChildren(
      state === "loading" ? h("span", { class: "spinner" }) : icon("warning"),
      h("span", {}, t(name, { message: sentence })),
      action ?? "",
    );
  };
  const renderStorage = () => {
    storage.hidden = app.library.persistent;
    storage.replaceChildren(...(app.library.persistent ? [] : [icon("warning"), h("span", {}, t("notKept"))]));
  };
  app.server.addEventListener("change", render, { signal });
  app.library.addEventListener("unsaved", renderStorage, { signal });
  render();
  renderStorage();
  return [server, storage];
}

/**
 * Opens and closes the sidebar: on narrow screens a drawer over the page, elsewhere a column that can be folded away.
 * @param {HTMLElement} shell @param {HTMLElement} main @param {AbortSignal} signal
 */
function drawer(shell, main, signal) {
  const narrow = matchMedia(NARROW);
  const button = iconButton("menu", t("conversations"), () => set(!open));
  button.setAttribute("aria-controls", "sidebar");
  const backdrop = h("div", { class: "backdrop", onclick: () => set(false) });
  let open = !narrow.matches;
  const set = (/** @type {boolean} */ wanted, moveFocus = true) => {
    open = wanted;
    const sidebar = /** @type {HTMLElement} */ (shell.querySelector(".sidebar"));
    shell.classList.toggle("sidebar-open", open);
    sidebar.inert = !open;
    main.inert = open && narrow.matches;
    button.setAttribute("aria-expanded", String(open));
    if (!narrow.matches || !moveFocus) return;
    if (open) sidebar.querySelector("button")?.focus();
    else button.focus();
  };
  narrow.addEventListener("change", () => set(!narrow.matches, false), { signal });
  const isOver = () => open && narrow.matches;
  return { button, backdrop, set, isOver };
}

/** @param {import("./main.js").App} app @param {HTMLElement} root @param {AbortSignal} signal @returns {Composer} */
export function buildShell(app, root, signal) {
  const shell = h("div", { class: "shell" });
  const main = h("div", { class: "main" });
  const side = drawer(shell, main, signal);
  const thread = new Thread(app, signal);
  const composer = new Composer(app, thread, signal);
  const chosen = () => {
    if (side.isOver()) side.set(false);
    composer.input.focus();
  };
  const sidebar = new Sidebar(app, chosen, signal);
  const title = h("h1", { class: "conversation-title", dir: "auto" });
  const renderTitle = () => {
    title.textContent = app.library.current.title || t("newChat");
    document.title = app.library.current.title ? `${app.library.current.title} · kiloq` : "kiloq";
  };
  for (const type of ["list", "select"]) app.library.addEventListener(type, renderTitle, { signal });
  renderTitle();
  main.append(
    h(
      "header",
      { class: "topbar" },
      side.button,
      title,
      modelPicker(app, signal),
      iconButton("plus", t("newChat"), () => (app.library.select(null), composer.input.focus()), {
        class: "narrow-only",
      }),
      iconButton("settings", t("settings"), () => app.openSettings()),
    ),
    ...notices(app, signal),
    thread.element,
    composer.element,
    app.announcer.element,
  );
  shell.append(
    h(
      "a",
      {
        class: "skip",
        href: `#${composer.input.id}`,
        onclick: (/** @type {Event} */ event) => (event.preventDefault(), chosen()),
      },
      t("skip"),
    ),
    sidebar.element,
    main,
    side.backdrop,
  );
  root.replaceChildren(shell);
  side.set(!matchMedia(NARROW).matches, false);
  composer.grow();
  addEventListener(
    "keydown",
    (event) => {
      const command = event.ctrlKey || event.metaKey;
      if (command && event.key.toLowerCase() === "k" && !event.shiftKey && !event.altKey) {
        event.preventDefault();
        app.library.select(null);
        chosen();
      } else if (
        event.key === "Escape" &&
        !event.defaultPrevented &&
        !event.isComposing &&
        !document.querySelector("dialog[open], [popover]:popover-open")
      ) {
        if (side.isOver()) side.set(false);
        else app.runner.stop(app.library.current);
      }
    },
    { signal },
  );
  return composer;
}
