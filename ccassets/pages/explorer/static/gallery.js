// The gallery: the images nearest to a text, a concept, an image or a patch, best first, without an end.

import { columns, counted, get, h, imageAddress, number, post } from "./api.js";
import { card, filters, line, muted, strong } from "./cards.js";
import { change, queryParameters, state, subscribe } from "./state.js";

const PAGE = 60;

export function makeGallery(root, app) {
  const { info } = app;
  const box = h("input", {
    type: "search",
    id: "query",
    list: "concepts",
    autocomplete: "off",
    placeholder: info.unavailable.encoder ? "a concept" : "a concept, or any text",
  });
  const file = h("input", { type: "file", accept: "image/*", id: "file", class: "hidden", onchange: () => file.files[0] && searchFile(file.files[0]) });
  const form = h(
    "form",
    { class: "search", role: "search", onsubmit: (event) => (event.preventDefault(), submit()) },
    h("label", { for: "query" }, "Find images like"),
    box,
    h("datalist", { id: "concepts" }, info.concepts.map(({ word }) => h("option", { value: word }))),
    h("button", { type: "submit", class: "primary" }, "Search"),
    !info.unavailable.encoder && [file, h("button", { type: "button", onclick: () => file.click() }, "Search by an image file…")],
  );
  const heading = h("div", { class: "heading" });
  const chosen = h("div", { class: "filters" });
  const list = h("ul", { class: "cards" });
  const end = h("p", { class: "end muted" });
  root.append(form, chosen, heading, list, end);

  let turn = 0;
  let offset = 0;
  let done = false;
  let busy = false;
  let abort = new AbortController();

  function submit() {
    const text = box.value.trim();
    const concept = info.concepts.find(({ word }) => word.toLowerCase() === text.toLowerCase());
    if (!text) change({ query: "", chosen: "" });
    else if (concept) change({ query: `concept:${concept.word}`, chosen: "" });
    else change({ query: `text:${text}`, chosen: "" });
  }

  async function searchFile(dropped) {
    app.say("Encoding the image…");
    try {
      const { image } = await (await post("api/images", {}, dropped)).json();
      app.say("");
      change({ view: "gallery", query: `image:${image}`, chosen: "" });
    } catch (error) {
      app.say(error.message);
    }
  }

  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    const dropped = event.dataTransfer?.files[0];
    if (dropped && info.unavailable.encoder) app.say(info.unavailable.encoder);
    else if (dropped) searchFile(dropped);
  });

  function describe() {
    const { text, concept, row, patch, image } = queryParameters(state.query);
    const back = h("button", { type: "button", class: "link", onclick: () => change({ query: "", chosen: "" }) }, "Show all images");
    const query = (words, from, extra) => [
      from !== undefined && !info.unavailable.images && h("img", { class: "asked", src: imageAddress(from, 96), alt: "" }),
      h("h2", {}, words),
      extra,
      back,
    ];
    if (state.chosen) return [h("h2", {}, `The selection, ${counted(state.selection.size, "image")}`), back];
    if (text) return query(`Images like “${text}”`);
    if (concept) return query(`Images with “${concept}”`, undefined, h("button", { type: "button", class: "link", onclick: () => change({ view: "map", colour: state.query }) }, "Colour the map by it"));
    if (row) return query(`Images like row ${number(Number(row))}`, row);
    if (patch) return query(`Patches like patch ${patch.split(":")[1]} of row ${number(Number(patch.split(":")[0]))}`, patch.split(":")[0]);
    if (image) return query("Images like the file");
    return [h("h2", {}, "All images")];
  }

  function reset() {
    turn++;
    abort.abort();
    abort = new AbortController();
    [offset, done, busy] = [0, false, false];
    const { text, concept } = queryParameters(state.query);
    if (document.activeElement !== box) box.value = text ?? concept ?? "";
    chosen.replaceChildren(...filters(info));
    heading.replaceChildren(...describe().flat().filter(Boolean));
    list.replaceChildren();
    end.textContent = "";
    more();
  }

  async function more() {
    if (busy || done) return;
    busy = true;
    const own = turn;
    if (!offset) end.textContent = "Searching…";
    try {
      const answer = state.chosen ? await selected() : await get("api/search", { ...queryParameters(state.query), split: state.split, class: state.class, group: state.group, k: PAGE, offset }, abort.signal);
      if (own !== turn) return;
      const hits = answer.rows;
      list.append(...hits.map((row, index) => card(row, info, captionOf(row, offset + index + 1), markOf(row))));
      for (const row of hits) if (state.selection.has(row.row)) list.querySelector(`[data-row="${row.row}"]`).classList.add("chosen");
      offset += hits.length;
      done = hits.length < PAGE || offset >= answer.total || (state.query && offset >= info.most_hits);
      end.textContent = endOf(answer);
    } catch (error) {
      if (error.name === "AbortError" || own !== turn) return;
      done = true;
      end.textContent = error.message;
    }
    busy = false;
    if (!done && end.getBoundingClientRect().top < innerHeight + 600) more();
  }

  function endOf({ total, compared }) {
    const sample = compared !== undefined && compared < total ? ` ${number(compared)} of them, evenly spaced, were compared: the file is large.` : "";
    if (!total) return "No image fits these filters.";
    if (!done) return `${counted(total, "image")}.${sample} Scroll for more.`;
    return offset < total ? `The first ${number(offset)} of ${counted(total, "image")}.${sample}` : `${counted(total, "image")}, all shown.${sample}`;
  }

  async function selected() {
    const { split, class: own } = await (selected.columns ??= columns("api/points", { columns: "split,class" }));
    const rows = [...state.selection].slice(offset, offset + PAGE).map((row) => ({
      row,
      key: null,
      split: split.categories[split.values[row]],
      class: own.categories[own.values[row]] ?? null,
      score: null,
    }));
    return { rows, total: state.selection.size };
  }

  function captionOf(row, rank) {
    return [
      line(row.score === null ? muted(`row ${number(row.row)}`) : [strong(`${rank}`), muted(` · ${row.score.toFixed(3)}`)], muted(` · ${row.split}`)),
      row.class && line(strong(row.class)),
      row.group && line(muted(row.group)),
    ].filter(Boolean).flat();
  }

  function markOf(row) {
    if (row.patch === undefined || !info.grid || info.geometry !== "squash") return undefined;
    const style = [row.patch % info.grid, Math.floor(row.patch / info.grid), 1].map((value, index) => `--${["column", "line", "side"][index]}: ${value / info.grid}`);
    const mark = h("span", { class: "patchmark", title: `patch ${row.patch}`, style: style.join(";") });
    return mark;
  }

  new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && more(), { rootMargin: "600px" }).observe(end);
  subscribe((changes) => {
    if (root.hidden) return;
    const asked = ["query", "split", "class", "group", "chosen"].some((name) => name in changes);
    if (asked || (changes.selection && state.chosen)) reset();
  });

  return { show: reset };
}
