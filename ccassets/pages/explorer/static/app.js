// The start of the page: views, the bar of the selection, messages.

import { counted, download, get, h, number, post } from "./api.js";
import { makeErrors } from "./errors.js";
import { makeGallery } from "./gallery.js";
import { makeImage } from "./image.js";
import { makeMap } from "./map.js";
import { addressOf, change, goBack, readAddress, state, subscribe } from "./state.js";

const MAKERS = { map: makeMap, gallery: makeGallery, image: makeImage, errors: makeErrors };

const app = { info: null, say };
const views = {};
let silence;

function say(text) {
  const message = document.getElementById("message");
  message.textContent = text;
  message.classList.toggle("shown", Boolean(text));
  clearTimeout(silence);
  if (text) silence = setTimeout(() => say(""), 8000);
}

function showView() {
  const name = state.view in MAKERS ? state.view : "map";
  for (const button of document.querySelectorAll("nav [data-view]")) {
    button.dataset.view === name ? button.setAttribute("aria-current", "page") : button.removeAttribute("aria-current");
  }
  for (const key of Object.keys(MAKERS)) document.getElementById(key).hidden = key !== name;
  views[name] ??= MAKERS[name](document.getElementById(name), app);
  views[name].show();
}

// --- the bar of the selection ---

const work = (task) => async () => {
  try {
    await task();
  } catch (error) {
    say(error.message);
  }
};

const rows = () => [...state.selection].sort((one, other) => one - other);
const save = (format, more) => work(async () => download(await post("api/selection", { format }, { rows: rows(), ...more })));
const correctedLabels = () => Object.fromEntries([...state.labels].map(([row, code]) => [row, app.info.classes[code]]));

const copyKeys = work(async () => {
  const text = await (await post("api/selection", { format: "keys" }, { rows: rows() })).text();
  await navigator.clipboard.writeText(text);
  say(`${counted(state.selection.size, "key")} copied.`);
});

const copyLink = work(async () => {
  await navigator.clipboard.writeText(location.href);
  say("The address of this view was copied: it works as long as the explorer runs.");
});

function drawBar() {
  const bar = document.getElementById("bar");
  const { selection, labels } = state;
  bar.hidden = !selection.size && !labels.size;
  const button = (label, onclick, attributes = {}) => h("button", { type: "button", onclick, ...attributes }, label);
  const parts = [];
  if (selection.size) {
    parts.push(
      h("b", {}, `${number(selection.size)} selected`),
      button("Show", () => change({ view: "gallery", chosen: "1", query: "" })),
      button("Copy keys", copyKeys),
      button("CSV", save("csv"), { title: "Facts and concept scores" }),
      button("Parquet", save("parquet"), { title: "Facts, scores and features" }),
      app.info.study && button("New study…", openStudyDialog),
      button("Copy link", copyLink),
      button("Clear", () => change({ selection: new Set(), chosen: "" })),
    );
  }
  if (labels.size) {
    parts.push(
      h("b", {}, counted(labels.size, "corrected label")),
      button("Labels CSV", work(async () => download(await post("api/labels", {}, { labels: correctedLabels() }))), {
        title: "For labels_override of the study: relabelling encodes nothing again",
      }),
      button("Forget", () => change({ labels: new Map() })),
    );
  }
  bar.replaceChildren(...parts.filter(Boolean));
}

function openStudyDialog() {
  const name = h("input", { id: "study-name", required: true, pattern: "[A-Za-z0-9_]{1,80}", value: `${app.info.study}_selection` });
  const corrected = [...state.labels.keys()].filter((row) => state.selection.has(row)).length;
  const content = [counted(state.selection.size, "key"), corrected && counted(corrected, "corrected label")].filter(Boolean).join(" and ");
  const dialog = h(
    "dialog",
    { "aria-labelledby": "study-title", onclose: () => dialog.remove() },
    h(
      "form",
      { method: "dialog", onsubmit: () => save("study", { name: name.value, labels: correctedLabels() })() },
      h("h2", { id: "study-title" }, "A new study of this selection"),
      h("p", {}, `A zip with the study file and ${content}. Unpack it in your folder of studies and build it: no image is encoded again.`),
      h("div", { class: "field" }, h("label", { for: "study-name" }, "Name"), name),
      h("div", { class: "heading" }, h("button", { type: "submit", class: "primary" }, "Download"), h("button", { type: "button", onclick: () => dialog.close() }, "Cancel")),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
}

// --- start ---

async function start() {
  app.info = await get("api/info");
  const { info } = app;
  document.title = `${info.title} · ccassets explorer`;
  document.getElementById("title").textContent = info.title;
  const facts = [counted(info.rows, "image"), info.phantoms && "generated phantoms, no medical result", !info.study && "a file alone: no pictures, no typed texts"];
  document.getElementById("subtitle").textContent = facts.filter(Boolean).join(" · ");
  for (const button of document.querySelectorAll("nav [data-view]")) {
    button.addEventListener("click", () => change({ view: button.dataset.view }));
  }
  subscribe((changes) => {
    if ("view" in changes) showView();
    if ("selection" in changes || "labels" in changes) drawBar();
  });
  addEventListener("popstate", goBack);
  addEventListener("hashchange", () => addressOf(state) !== location.hash && readAddress());
  readAddress();
}

start().catch((error) => say(error.message));
