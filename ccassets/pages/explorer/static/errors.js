// Errors and data: confident errors, labels in doubt, look-alikes in different splits, images that were left out.

import { counted, get, h } from "./api.js";
import { card, line, muted, strong } from "./cards.js";
import { change, select, state, subscribe } from "./state.js";

const percent = (share) => `${(share * 100).toFixed(0)} %`;

const LISTS = {
  confident: {
    label: "Confident errors",
    text: "Images of val and test that the concept classifier predicts as another class than their label, the most confident error first.",
    lines: (row) => [line("labelled ", strong(row.class ?? "none")), line("predicted ", strong(row.predicted), muted(` ${percent(row.probability)}`)), line(muted(row.split))],
  },
  labels: {
    label: "Labels in doubt",
    text: "Images whose label contradicts classifiers that were fitted without them (confident learning), the least probable label first. A label in doubt may be right: look at the image.",
    lines: (row) => [line("labelled ", strong(row.class ?? "none"), muted(` ${percent(row.confidence)}`)), line("looks like ", strong(row.predicted), muted(` ${percent(row.probability)}`)), line(muted(row.split))],
  },
  duplicates: {
    label: "Duplicates and leaks",
    text: "Pairs of images in different splits that look alike. If one is in train, a test with the other is no test.",
  },
  "left-out": {
    label: "Images left out",
    text: "Images that could not be read when the database was built: they have no row, or a row of a grey picture.",
    lines: (row) => [line(muted(row.split)), row.key && line(row.key)].filter(Boolean),
  },
};

export function makeErrors(root, app) {
  const { info } = app;
  const tabs = h("div", { class: "chips", role: "group", "aria-label": "Lists" });
  const text = h("p", { class: "note" });
  const heading = h("div", { class: "heading" });
  const content = h("div", {});
  root.append(tabs, text, heading, content);
  let turn = 0;
  const loaded = {};

  async function show() {
    const name = state.list in LISTS ? state.list : "confident";
    const own = ++turn;
    tabs.replaceChildren(
      ...Object.entries(LISTS).map(([key, { label }]) =>
        h("button", { type: "button", class: "chip", "aria-pressed": String(key === name), onclick: () => change({ list: key }) }, label),
      ),
    );
    text.textContent = LISTS[name].text;
    heading.replaceChildren(h("span", { class: "muted" }, "Computing…"));
    content.replaceChildren();
    let list;
    try {
      list = await (loaded[name] ??= get(`api/errors/${name}`));
    } catch (error) {
      delete loaded[name];
      list = { unavailable: error.message };
    }
    if (own !== turn) return;
    if (list.unavailable) return heading.replaceChildren(h("p", { class: "note" }, list.unavailable));
    const rows = name === "duplicates" ? list.pairs.flatMap((pair) => pair.rows) : list.rows;
    const shown = (list.pairs ?? list.rows).length + (list.skipped?.length ?? 0);
    heading.replaceChildren(
      h("h2", {}, list.total ? counted(list.total, name === "duplicates" ? "pair" : "image") : "None"),
      shown < list.total ? h("span", { class: "muted" }, `the first ${shown} are shown`) : "",
      rows.length ? h("button", { type: "button", onclick: () => select(rows.map(({ row }) => row)) }, "Select all of these") : "",
      name === "labels" || name === "duplicates" ? h("button", { type: "button", class: "link", onclick: () => change({ view: "map", rings: name }) }, "Ring them on the map") : "",
    );
    content.replaceChildren(name === "duplicates" ? pairs(list.pairs) : h("ul", { class: "cards" }, list.rows.map((row) => card(row, info, LISTS[name].lines(row)))), name === "left-out" ? skipped(list.skipped) : "");
  }

  const pairs = (list) =>
    h(
      "ul",
      { class: "pairs" },
      list.map(({ similarity, rows }) =>
        h(
          "li",
          {},
          h("div", { class: "similarity" }, strong(`similarity ${similarity.toFixed(4)}`), rows[0].class !== rows[1].class && h("span", { class: "verdict wrong" }, "other label")),
          h("ul", { class: "cards two" }, rows.map((row) => card(row, info, [line(strong(row.split)), row.class && line(row.class), row.key && line(muted(row.key))].filter(Boolean)))),
        ),
      ),
    );

  const skipped = (list) =>
    list.length
      ? h(
          "table",
          {},
          h("caption", {}, "Without a row"),
          h("thead", {}, h("tr", {}, ["split", "key", "reason"].map((name) => h("th", { scope: "col" }, name)))),
          h("tbody", {}, list.map(({ split, key, reason }) => h("tr", {}, [split, key, reason].map((value) => h("td", {}, value))))),
        )
      : "";

  subscribe((changes) => {
    if (!root.hidden && "list" in changes && !("view" in changes)) show();
  });

  return { show };
}
