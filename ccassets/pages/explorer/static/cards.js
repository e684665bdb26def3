// Cards of rows: a picture with its facts, which opens the row, and a box to select it.

import { h, imageAddress } from "./api.js";
import { change, select, state, subscribe } from "./state.js";

const SIDE = 224;

/** A card of a row: `lines` are shown below its picture, `mark` over it. */
export function card(row, info, lines, mark) {
  const name = row.key ?? `row ${row.row}`;
  const box = h("input", {
    type: "checkbox",
    checked: state.selection.has(row.row),
    "aria-label": `Select ${name}`,
    onchange: () => select([row.row], box.checked),
  });
  const element = h(
    "li",
    { class: "card", "data-row": row.row },
    h(
      "button",
      { type: "button", class: "open", "aria-label": `Open ${name}${row.class ? `, ${row.class}` : ""}`, onclick: () => openRow(row.row) },
      picture(row.row, info, row.class ?? ""),
      mark,
    ),
    h("div", { class: "caption" }, h("label", { class: "pick" }, box), h("div", {}, lines)),
  );
  // The mark is in fractions of the picture, which a square card holds whole.
  const image = mark && element.querySelector(".open img");
  image?.addEventListener("load", () => {
    mark.style.setProperty("--w", Math.min(1, image.naturalWidth / image.naturalHeight));
    mark.style.setProperty("--h", Math.min(1, image.naturalHeight / image.naturalWidth));
  });
  return element;
}

/** The picture of a row, or its name where there are no pictures. */
export function picture(row, info, caption, side = SIDE) {
  if (info.unavailable.images) return h("span", { class: "nopicture" }, caption || `row ${row}`);
  return h("img", { src: imageAddress(row, side), alt: "", loading: "lazy", decoding: "async" });
}

export const openRow = (row) => change({ view: "image", row: String(row) });

/** Bring the boxes of all cards in line with the selection. */
subscribe((changes) => {
  if (!changes.selection) return;
  for (const element of document.querySelectorAll(".card[data-row]")) {
    const chosen = state.selection.has(Number(element.dataset.row));
    element.classList.toggle("chosen", chosen);
    const box = element.querySelector(".pick input");
    if (box) box.checked = chosen;
  }
});

export const line = (...parts) => h("div", {}, ...parts);
export const strong = (text) => h("b", {}, text);
export const muted = (text) => h("span", { class: "muted" }, text);

/** A choice of one of several values as buttons, or as a list where there are many. */
export function chips(label, values, current, choose) {
  if (values.length > 12) {
    const list = h(
      "select",
      { onchange: () => choose(list.value) },
      h("option", { value: "" }, `every ${label}`),
      values.map((value) => h("option", { value, selected: value === current }, value)),
    );
    return h("label", { class: "chips" }, h("span", { class: "muted" }, label), list);
  }
  return h(
    "div",
    { class: "chips", role: "group", "aria-label": label },
    h("span", { class: "muted", "aria-hidden": "true" }, label),
    values.map((value) =>
      h(
        "button",
        { type: "button", class: "chip", "aria-pressed": String(value === current), onclick: () => choose(value === current ? "" : value) },
        value,
      ),
    ),
  );
}

/** The chips of split, class and group, which the map and the gallery share; one of them may be left out. */
export function filters(info, without) {
  const set = (name) => (value) => change({ [name]: value, chosen: "" });
  const parts = [];
  const splits = Object.keys(info.splits);
  if (splits.length > 1 && without !== "split") parts.push(chips("split", splits, state.split, set("split")));
  if (info.classes.length && without !== "class") parts.push(chips("class", info.classes, state.class, set("class")));
  if (info.groups && without !== "group") {
    const box = h("input", { type: "search", value: state.group, placeholder: "patient or slide", "aria-label": "group", onchange: () => set("group")(box.value.trim()) });
    parts.push(h("div", { class: "chips" }, h("span", { class: "muted" }, "group"), box));
  }
  return parts;
}
