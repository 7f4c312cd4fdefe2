/**
 * Calls of tools. The page runs nothing: it shows what the model wants called, with the arguments laid out, and takes the
 * result that the reader pastes. When every call has its result the model is asked to go on.
 *
 * @typedef {import("./tree.js").Message} Message
 * @typedef {import("./tree.js").ToolCall} ToolCall
 */
import { h, icon, uniqueId } from "./dom.js";
import { t } from "./strings.js";

/** @param {string} text @returns {string} indented where it is JSON, as it is where not */
export function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** @param {(result: string) => void} onresult */
function resultForm(onresult) {
  const id = uniqueId("result");
  const input = h("textarea", { id, rows: 3, class: "field", required: true });
  return h(
    "form",
    {
      class: "result-form",
      onsubmit: (/** @type {Event} */ event) => {
        event.preventDefault();
        onresult(input.value);
      },
    },
    h("label", { for: id }, t("toolResultLabel")),
    input,
    h("div", { class: "row-end" }, h("button", { type: "submit", class: "button primary" }, t("addResult"))),
  );
}

/**
 * @param {ToolCall} call @param {((result: string) => void) | null} onresult null where a result is not asked for
 * @returns {HTMLElement}
 */
export function toolCard(call, onresult) {
  const name = call.function.name || t("unknown");
  return h(
    "section",
    { class: "tool-card", "aria-label": t("toolCall", { name }) },
    h("div", { class: "tool-head" }, icon("tool"), h("span", {}, t("toolCallLabel")), h("code", {}, name)),
    h(
      "pre",
      { tabIndex: 0, role: "region", "aria-label": t("arguments") },
      h("code", {}, pretty(call.function.arguments) || "{}"),
    ),
    onresult ? resultForm(onresult) : null,
  );
}

/** @param {Message} message of a tool @param {string} name of the function it answers */
export const toolResult = (message, name) =>
  h(
    "div",
    { class: "tool-result" },
    h("div", { class: "tool-head" }, icon("check"), h("span", {}, t("toolResultOf")), h("code", {}, name)),
    h("pre", { tabIndex: 0, role: "region", "aria-label": t("toolResultOf") }, h("code", {}, pretty(message.content))),
  );
