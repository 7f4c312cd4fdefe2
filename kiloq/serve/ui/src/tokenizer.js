/*
 * The tokenizer pane: what is typed, or the whole prompt of the conversation as the model gets it, shown as tokens. Asks
 * the server a moment after the last key, and only the newest answer counts.
 */
import { ApiError } from "./api.js";
import { openDialog } from "./dialogs.js";
import { h, uniqueId } from "./dom.js";
import { count } from "./format.js";
import { openAIMessages, parseTools } from "./request.js";
import { t } from "./strings.js";
import { TokenList } from "./tokenlist.js";
import { tokensOf } from "./tokens.js";
import { path } from "./tree.js";

const PAUSE_MS = 250;

/** @param {import("./main.js").App} app */
export function openTokenizer({ settings, library }) {
  const { model } = settings.values;
  const textId = uniqueId("text");
  const whatId = uniqueId("what");
  const input = h("textarea", {
    id: textId,
    class: "field",
    rows: 4,
    value: t("tokenizerExample"),
    oninput: () => later(),
  });
  const what = h(
    "select",
    { id: whatId, class: "field", onchange: () => run() },
    h("option", { value: "text" }, t("tokenizeText")),
    h("option", { value: "conversation" }, t("tokenizeConversation")),
  );
  what.disabled = !library.current.messages.length;
  const typed = h("div", { class: "setting" }, h("label", { for: textId }, t("tokenizerText")), input);
  const summary = h("p", { class: "summary", role: "status" });
  const list = new TokenList({ scored: false });
  let timer = 0;
  let newest = 0;

  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(run, PAUSE_MS);
  };
  const run = async () => {
    const mine = ++newest;
    const whole = what.value === "conversation";
    typed.hidden = whole;
    const { current } = library;
    try {
      const body = whole
        ? { model, messages: openAIMessages(current.system, path(current)), tools: parseTools(settings.values.tools) }
        : { model, prompt: input.value };
      const found = await tokensOf(body);
      if (mine !== newest) return;
      const characters = whole ? "" : ` · ${t("characterCount", { count: count([...input.value].length) })}`;
      summary.textContent = t("tokenCount", { count: count(found.count) }) + characters;
      list.show(found.tokens);
    } catch (error) {
      if (mine !== newest) return;
      summary.textContent = (error instanceof ApiError && error.message) || t("tokenizeFailed");
      list.show([]);
    }
  };

  openDialog(
    t("tokenizer"),
    [
      h("p", { class: "hint" }, t("tokenizerHint")),
      h("div", { class: "setting" }, h("label", { for: whatId }, t("tokenizeWhat")), what),
      typed,
      summary,
      list.element,
    ],
    { class: "wide", onclose: () => clearTimeout(timer) },
  );
  input.focus();
  run();
}
