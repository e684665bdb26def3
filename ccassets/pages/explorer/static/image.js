// One image: its facts, its concepts, the heat map of any concept or text over it, patches, neighbours, prediction.

import { get, h, imageAddress, number, signed } from "./api.js";
import { card, line, muted, strong } from "./cards.js";
import { change, queryParameters, select, state, subscribe } from "./state.js";

const NEIGHBOURS = 12;
const HEAT = [0, 214, 143];
const OPACITY = 0.75;
const SHOWN_CONCEPTS = 40;

export function makeImage(root, app) {
  const { info } = app;
  const title = h("h2", {});
  const previous = h("button", { type: "button", onclick: () => step(-1) }, "← Previous");
  const next = h("button", { type: "button", onclick: () => step(1) }, "Next →");
  const stage = h("div", { class: "stage" });
  const pictureNote = h("p", { class: "note" });
  const heatNote = h("p", { class: "note", role: "status" });
  const heatBox = h("input", { type: "search", id: "heat-text", list: "heat-concepts", autocomplete: "off", placeholder: info.unavailable.encoder ? "a concept" : "a concept, or any text" });
  const opacity = h("input", { type: "range", min: "0", max: "100", value: "100", id: "opacity", oninput: () => stage.style.setProperty("--heat", opacity.value / 100) });
  const heatForm = h(
    "form",
    { class: "search", onsubmit: (event) => (event.preventDefault(), askHeat(heatBox.value.trim())) },
    h("label", { for: "heat-text" }, "Show where"),
    heatBox,
    h("datalist", { id: "heat-concepts" }, info.concepts.map(({ word }) => h("option", { value: word }))),
    h("button", { type: "submit", class: "primary" }, "Show"),
    h("button", { type: "button", onclick: () => change({ heat: "" }) }, "No heat map"),
    h("span", { class: "opacity" }, h("label", { for: "opacity" }, "Strength"), opacity),
  );
  const facts = h("div", { class: "panel" });
  const prediction = h("div", { class: "panel" });
  const concepts = h("div", { class: "panel" });
  const neighbours = h("div", { class: "panel wide" });
  root.append(
    h("div", { class: "heading" }, title, previous, next),
    h("div", { class: "columns" }, h("div", { class: "left" }, stage, pictureNote, info.unavailable.heat ? "" : heatForm, heatNote), h("div", { class: "known" }, facts, prediction, concepts)),
    neighbours,
  );

  let turn = 0;
  let heatTurn = 0;
  let current;

  const step = (by) => change({ row: String((Number(state.row) + by + info.rows) % info.rows) });

  function askHeat(text) {
    const concept = info.concepts.find(({ word }) => word.toLowerCase() === text.toLowerCase());
    if (!text) change({ heat: "" });
    else change({ heat: concept ? `concept:${concept.word}` : `text:${text}` });
  }

  async function show() {
    if (state.row === "") return change({ row: "0" }, { replace: true });
    const own = ++turn;
    const row = Number(state.row);
    try {
      current = await get(`api/rows/${row}`);
    } catch (error) {
      title.textContent = error.message;
      return;
    }
    if (own !== turn) return;
    title.textContent = current.key ?? `row ${number(row)}`;
    drawStage(row);
    drawFacts();
    drawPrediction();
    drawConcepts();
    drawHeat();
    drawNeighbours(own);
  }

  // --- the picture and its heat map ---

  function drawStage(row) {
    stage.replaceChildren();
    stage.classList.toggle("empty", Boolean(info.unavailable.images));
    pictureNote.textContent = info.unavailable.images ?? "";
    if (info.unavailable.images) {
      stage.hidden = !current.box;
      if (current.box) drawGrid(row, current.box);
      return;
    }
    const image = h("img", { src: imageAddress(row), alt: `The image ${current.key ?? row}`, onerror: () => explain() });
    const explain = async () => {
      const sentence = await fetch(image.src).then((answer) => answer.json()).catch(() => ({ error: "The image cannot be read." }));
      stage.replaceChildren(h("p", { class: "note" }, sentence.error));
    };
    stage.append(image);
    if (current.box) drawGrid(row, current.box);
  }

  /** The layer over the picture: heat, and the patch under the pointer, which a click searches for. */
  function drawGrid(row, [left, top, right, bottom]) {
    const layer = h("canvas", { class: "heat", "aria-hidden": "true" });
    const cell = h("span", { class: "cell", hidden: true });
    const cover = h("button", {
      type: "button",
      class: "cover",
      "aria-label": "Patches: arrow keys choose one, Enter searches for patches like it.",
      title: "Click: search for patches like this one",
    });
    let at = null;
    const mark = (column, line) => {
      at = [Math.max(0, Math.min(info.grid - 1, column)), Math.max(0, Math.min(info.grid - 1, line))];
      cell.style.setProperty("--column", at[0] / info.grid);
      cell.style.setProperty("--line", at[1] / info.grid);
      cell.style.setProperty("--side", 1 / info.grid);
      cell.hidden = false;
    };
    const under = (event) => {
      const box = cover.getBoundingClientRect();
      mark(Math.floor(((event.clientX - box.left) / box.width) * info.grid), Math.floor(((event.clientY - box.top) / box.height) * info.grid));
    };
    cover.addEventListener("pointermove", under);
    cover.addEventListener("pointerleave", () => (cell.hidden = true));
    cover.addEventListener("focus", () => at ?? (cover.matches(":focus-visible") && mark(Math.floor(info.grid / 2), Math.floor(info.grid / 2))));
    cover.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      if (!moves[event.key]) return;
      event.preventDefault();
      mark((at?.[0] ?? 0) + moves[event.key][0], (at?.[1] ?? 0) + moves[event.key][1]);
    });
    cover.addEventListener("click", (event) => {
      if (event.detail) under(event);
      if (at) change({ view: "gallery", query: `patch:${row}:${at[1] * info.grid + at[0]}`, chosen: "" });
    });
    const box = { left, top, width: right - left, height: bottom - top };
    const style = Object.entries(box).map(([name, value]) => `${name}: ${value * 100}%`);
    stage.append(h("div", { class: "frame", style: style.join(";") }, layer, cell, cover));
  }

  async function drawHeat() {
    const own = ++heatTurn;
    const { text, concept } = queryParameters(state.heat);
    const frame = stage.querySelector(".frame");
    for (const button of concepts.querySelectorAll("[data-word]")) button.setAttribute("aria-pressed", String(button.dataset.word === concept));
    if (document.activeElement !== heatBox) heatBox.value = text ?? concept ?? "";
    const layer = frame?.querySelector(".heat");
    layer?.getContext("2d").clearRect(0, 0, layer.width, layer.height);
    heatNote.textContent = info.unavailable.heat ?? "";
    if (!layer || info.unavailable.heat || !(text || concept)) {
      if (layer && !info.unavailable.heat) heatNote.textContent = "Choose a concept, or type what to look for. Click on the picture to search for patches like that one.";
      return;
    }
    try {
      const heat = await get(`api/heat/${state.row}`, { text, concept });
      if (own !== heatTurn) return;
      paintHeat(layer, heat);
      heatNote.textContent = `Green: patches that are nearer to “${text ?? concept}” than patches of this database usually are.`;
    } catch (error) {
      if (own === heatTurn) heatNote.textContent = error.message;
    }
  }

  function paintHeat(layer, { grid, low, high }) {
    const side = grid.length;
    [layer.width, layer.height] = [side, side];
    const picture = new ImageData(side, side);
    grid.flat().forEach((cosine, patch) => {
      const heat = Math.max(0, Math.min(1, (cosine - low) / (high - low || 1)));
      picture.data.set([...HEAT, heat * OPACITY * 255], patch * 4);
    });
    layer.getContext("2d").putImageData(picture, 0, 0);
  }

  // --- what is known of it ---

  function drawFacts() {
    const corrected = info.classes[state.labels.get(current.row)];
    const box = h("input", { type: "checkbox", checked: state.selection.has(current.row), onchange: () => select([current.row], box.checked) });
    const known = [["class", current.class ?? (info.classes.length ? "none" : undefined)], ["split", current.split], ["patient or slide", current.group], ["row", number(current.row)]];
    const relabel = h(
      "select",
      { id: "relabel", onchange: () => correct(relabel.value) },
      h("option", { value: "" }, "as it is"),
      info.classes.map((name, code) => h("option", { value: String(code), selected: name === corrected }, name)),
    );
    const history = h("details", { ontoggle: () => history.open && tell(history) }, h("summary", {}, "Where it came from"));
    facts.replaceChildren(
      h("label", { class: "pick" }, box, " in the selection"),
      h("dl", {}, known.filter(([, value]) => value !== undefined && value !== null).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
      ...(info.classes.length && !info.multilabel && current.key !== null ? [h("div", { class: "field" }, h("label", { for: "relabel" }, "The label should be"), relabel)] : []),
      ...(current.key !== null ? [history] : []),
    );
  }

  function correct(code) {
    const labels = new Map(state.labels);
    if (code === "" || info.classes[code] === current.class) labels.delete(current.row);
    else labels.set(current.row, Number(code));
    change({ labels }, { replace: true });
  }

  async function tell(details) {
    if (details.children.length > 1) return;
    const content = h("dl", {}, h("dt", {}, "…"));
    details.append(content);
    try {
      const history = await get(`api/rows/${current.row}/history`);
      const shown = (value) => (value && typeof value === "object" ? Object.values(value).filter((part) => part !== null && part !== undefined).map(shown).join(" · ") || "none" : String(value));
      content.replaceChildren(...Object.entries(history).flatMap(([name, value]) => [h("dt", {}, name.replaceAll("_", " ")), h("dd", {}, shown(value))]));
    } catch (error) {
      content.replaceChildren(h("dd", {}, error.message));
    }
  }

  function drawPrediction() {
    const { prediction: known } = current;
    prediction.hidden = false;
    if (!known) {
      prediction.hidden = !info.unavailable.predictions;
      prediction.replaceChildren(h("h3", {}, "Prediction"), h("p", { class: "note" }, info.unavailable.predictions ?? ""));
      return;
    }
    const verdict = info.multilabel || current.class === null ? "" : known.class === current.class ? "right" : "wrong";
    const likely = Object.entries(known.probabilities).sort(([, one], [, other]) => other - one).slice(0, 5);
    const largest = Math.max(...known.contributions.map(({ value }) => Math.abs(value)), 1e-9);
    prediction.replaceChildren(
      h("h3", {}, "Prediction: ", known.class, verdict && h("span", { class: `verdict ${verdict}` }, verdict)),
      h("ul", { class: "bars" }, likely.map(([name, share]) => bar(name, share, `${(share * 100).toFixed(0)} %`, "share"))),
      known.contributions.length > 0 ? h("h4", {}, `What speaks for and against “${known.explained}”`) : "",
      h("ul", { class: "bars" }, known.contributions.slice(0, 8).map(({ word, value }) => conceptBar(word, value / largest, signed(value, 2)))),
    );
  }

  function drawConcepts() {
    if (!current.concepts.length) return concepts.replaceChildren(h("p", { class: "note" }, "The file holds no concepts."));
    const sorted = [...current.concepts].sort((one, other) => other.standard - one.standard);
    const rest = sorted.slice(SHOWN_CONCEPTS);
    const draw = ({ word, standard, score }) => conceptBar(word, standard / 3, signed(standard, 1), `similarity ${score.toFixed(3)}`);
    concepts.replaceChildren(
      h("h3", {}, "Concepts"),
      h("p", { class: "note" }, `Similarity in standard deviations from the average image.${info.unavailable.heat ? "" : " Click one to see where."}`),
      h("ul", { class: "bars" }, sorted.slice(0, SHOWN_CONCEPTS).map(draw)),
      rest.length > 0 ? h("details", {}, h("summary", {}, `${rest.length} more`), h("ul", { class: "bars" }, rest.map(draw))) : "",
    );
  }

  function bar(name, share, text, kind) {
    const element = h("li", { class: `bar ${kind}` }, h("span", { class: "name" }, name), h("span", { class: "track" }, h("span", { class: "fill" })), h("span", { class: "value" }, text));
    element.style.setProperty("--share", Math.max(-1, Math.min(1, share)));
    return element;
  }

  function conceptBar(word, share, text, title) {
    const element = bar(word, share, text, share < 0 ? "signed negative" : "signed");
    if (title) element.title = title;
    if (info.unavailable.heat) return element;
    const button = h("button", { type: "button", class: "name", "data-word": word, "aria-pressed": String(state.heat === `concept:${word}`), onclick: () => change({ heat: state.heat === `concept:${word}` ? "" : `concept:${word}` }) }, word);
    element.querySelector(".name").replaceWith(button);
    return element;
  }

  async function drawNeighbours(own) {
    const list = h("ul", { class: "cards strip" });
    neighbours.replaceChildren(
      h("h3", {}, "The most alike images"),
      list,
      h("button", { type: "button", class: "link", onclick: () => change({ view: "gallery", query: `row:${current.row}`, chosen: "" }) }, "More like this"),
    );
    const { rows } = await get("api/search", { row: current.row, k: NEIGHBOURS });
    if (own !== turn) return;
    list.append(...rows.map((row) => card(row, info, [line(strong(row.score.toFixed(3)), muted(` · ${row.split}`)), row.class && line(row.class === current.class ? row.class : strong(row.class))].filter(Boolean))));
  }

  subscribe((changes) => {
    if (root.hidden) return;
    if ("row" in changes && !("view" in changes)) show();
    else if (current) {
      if ("heat" in changes) drawHeat();
      if (changes.selection || changes.labels) drawFacts();
    }
  });

  return { show };
}
