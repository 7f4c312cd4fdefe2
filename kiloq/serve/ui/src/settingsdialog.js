/*
 * The settings: system prompt, sampling, tools, display. Each change holds at once; a value that is not allowed is marked,
 * explained, and not taken over. An empty sampling field means the server's own default.
 */
import { confirm, openDialog, toast } from "./dialogs.js";
import { h, uniqueId } from "./dom.js";
import { count } from "./format.js";
import { parseTools, SAMPLING } from "./request.js";
import { parseSampling } from "./settings.js";
import { t } from "./strings.js";

const EXAMPLE_TOOL = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather of a city now",
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    },
  },
];

/** @param {string} label @param {any} control @param {string} [hint] @returns {any} a labelled control */
function labelled(label, control, hint) {
  const id = uniqueId("setting");
  const note = h("p", { class: "hint", id: `${id}-hint` }, hint ?? "");
  note.hidden = !hint;
  control.id = id;
  control.setAttribute("aria-describedby", note.id);
  return h("div", { class: "setting" }, h("label", { for: id }, label), control, note);
}

/** Marks a control as wrong with a sentence, or as right again. @param {any} control @param {string} sentence "" for right @param {string} hint */
function mark(control, sentence, hint) {
  control.setAttribute("aria-invalid", String(Boolean(sentence)));
  const note = control.parentElement.querySelector(".hint");
  note.textContent = sentence || hint;
  note.hidden = !note.textContent;
  note.classList.toggle("wrong", Boolean(sentence));
}

/** @param {import("./settings.js").Settings} settings @param {(typeof SAMPLING)[number]} field */
function samplingField(settings, [name, least, greatest, step]) {
  const value = settings.values.sampling[name];
  const range = t("range", { least: String(least), greatest: greatest > 1e6 ? "2^53 - 1" : count(greatest) });
  const hint = t(`${name}Hint`);
  const input = h("input", {
    type: "text",
    inputMode: step < 1 ? "decimal" : "numeric",
    class: "field",
    value: value ?? "",
    placeholder: t("serverDefault"),
    autocomplete: "off",
  });
  const setting = labelled(name, input, hint);
  setting.querySelector("label").append(h("span", { class: "range" }, range));
  input.addEventListener("input", () => {
    const parsed = parseSampling(name, input.value);
    mark(input, parsed === undefined ? t("notInRange", { range }) : "", hint);
    if (parsed !== undefined) settings.update({ sampling: { ...settings.values.sampling, [name]: parsed } });
  });
  return setting;
}

/** @param {import("./settings.js").Settings} settings */
function samplingPart(settings) {
  const fields = h("div", { class: "grid" });
  const stop = h("textarea", {
    class: "field",
    rows: 2,
    value: settings.values.stop,
    oninput: () => settings.update({ stop: stop.value }),
  });
  const fill = () => {
    fields.replaceChildren(...SAMPLING.map((field) => samplingField(settings, field)));
    stop.value = settings.values.stop;
  };
  fill();
  const reset = h(
    "button",
    { type: "button", class: "button", onclick: () => (settings.resetSampling(), fill()) },
    t("resetSampling"),
  );
  return part(
    t("sampling"),
    h("p", { class: "hint" }, t("samplingHint")),
    fields,
    labelled(t("stopStrings"), stop, t("stopStringsHint")),
    reset,
  );
}

/** @param {import("./settings.js").Settings} settings */
function toolsPart(settings) {
  const input = h("textarea", { class: "field code", rows: 6, value: settings.values.tools, spellcheck: false });
  const setting = labelled(t("toolsLabel"), input, t("toolsHint"));
  const take = () => {
    try {
      parseTools(input.value);
      mark(input, "", t("toolsHint"));
      settings.update({ tools: input.value });
    } catch {
      mark(input, t("toolsWrong"), t("toolsHint"));
    }
  };
  input.addEventListener("input", take);
  const example = h(
    "button",
    { type: "button", class: "button", onclick: () => ((input.value = JSON.stringify(EXAMPLE_TOOL, null, 2)), take()) },
    t("exampleTool"),
  );
  return part(t("tools"), setting, example);
}

/** @param {string} label @param {string} value @param {[string, string][]} choices @param {(value: any) => void} onchange */
function choice(label, value, choices, onchange) {
  const select = h(
    "select",
    { class: "field", onchange: () => onchange(select.value) },
    ...choices.map(([name, text]) => h("option", { value: name }, text)),
  );
  select.value = value;
  return labelled(label, select);
}

/** @param {import("./settings.js").Settings} settings */
function displayPart(settings) {
  const { theme, language, tokenView } = settings.values;
  const view = h("input", {
    type: "checkbox",
    checked: tokenView,
    onchange: () => settings.update({ tokenView: view.checked }),
  });
  return part(
    t("display"),
    h(
      "div",
      { class: "grid" },
      choice(
        t("theme"),
        theme,
        [
          ["auto", t("themeAuto")],
          ["light", t("themeLight")],
          ["dark", t("themeDark")],
        ],
        (value) => settings.update({ theme: value }),
      ),
      choice(
        t("language"),
        language,
        [
          ["auto", t("languageAuto")],
          ["en", "English"],
          ["zh", "中文"],
        ],
        (value) => settings.update({ language: value }),
      ),
    ),
    h("div", { class: "check" }, labelled(t("tokenView"), view, t("tokenViewHint"))),
  );
}

/** @param {string} title @param {...any} content */
const part = (title, ...content) => h("section", { class: "settings-part" }, h("h3", {}, title), ...content);

/** @param {import("./main.js").App} app @returns {HTMLDialogElement} */
export function openSettings(app) {
  const { settings, library } = app;
  const conversation = library.current;
  const system = h("textarea", { class: "field", rows: 4, value: conversation.system });
  system.addEventListener("input", () => {
    conversation.system = system.value;
    if (conversation.messages.length) library.changed(conversation, { listed: false });
  });
  const keep = h(
    "button",
    {
      type: "button",
      class: "button",
      onclick: () => (settings.update({ system: system.value }), toast(t("systemKept"))),
    },
    t("systemKeep"),
  );
  const removeAll = h(
    "button",
    { type: "button", class: "button danger", onclick: () => deleteAll(app) },
    t("deleteAll"),
  );
  return openDialog(
    t("settings"),
    [
      part(t("systemPrompt"), labelled(t("systemLabel"), system, t("systemHint")), keep),
      samplingPart(settings),
      toolsPart(settings),
      displayPart(settings),
      part(t("data"), h("p", { class: "hint" }, t(library.persistent ? "dataHint" : "notKept")), removeAll),
    ],
    { class: "settings" },
  );
}

/** @param {import("./main.js").App} app */
async function deleteAll({ library, runner }) {
  const all = library.list();
  if (!(await confirm(t("deleteAll"), t("deleteAllQuestion", { count: count(all.length) }), t("delete")))) return;
  for (const conversation of all) runner.stop(conversation);
  await library.remove(all.map((conversation) => conversation.id));
}
