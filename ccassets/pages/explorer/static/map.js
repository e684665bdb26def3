// The map: every image a point, near one another where the encoder sees them alike.

import { columns, counted, get, h, imageAddress, number } from "./api.js";
import { filters, openRow } from "./cards.js";
import { PointPlot, pixel } from "./points.js";
import { change, select, state, subscribe } from "./state.js";

// Okabe and Ito's colours, which colour-blind people tell apart, the yellow darker; then further tones of them.
export const PALETTE = [
  "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a600", "#8a8f98",
  "#004b75", "#9c6c00", "#00694d", "#8f4f73", "#2f7fb0", "#8f3f00",
]; // prettier-ignore
const OUTCOME = ["#009e73", "#d55e00"];
const NONE = "#8a8f98";
// Cividis: a scale that is read with any kind of sight, and in grey.
const SCALE = ["#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838"];
const RINGS = { labels: ["labels in doubt", "#d55e00", 9], duplicates: ["look-alikes in other splits", "#cc79a7", 12] };
const UNKNOWN = 65535;

export function makeMap(root, app) {
  const { info } = app;
  const canvas = h("canvas", {
    tabindex: "0",
    role: "application",
    "aria-label":
      "Map of all images. Arrow keys move it, plus and minus zoom, 0 shows everything, Enter opens the image in the middle.",
  });
  const tip = h("div", { class: "tip", hidden: true });
  const legend = h("div", { class: "legend" });
  const tools = h("div", { class: "tools", role: "toolbar", "aria-label": "Tools of the map" });
  const controls = h("div", { class: "controls" });
  const drawing = h("div", { class: "drawing" }, tools, h("div", { class: "plot" }, canvas, tip));
  root.append(drawing, h("aside", { class: "side", "aria-label": "What the map shows" }, controls, legend));

  let plot;
  let colouring = 0;
  const loaded = {};

  const column = async (name) => (await (loaded[name] ??= columns("api/points", { columns: name })))[name];

  async function start() {
    loaded.xy ??= columns("api/points", { columns: "x,y" });
    // Beside the points, which may take seconds; where it fails, painting says so.
    if (!/^(concept|text|outcome)/.test(state.colour)) column(state.colour).catch(() => {});
    const { x, y } = await loaded.xy;
    plot = new PointPlot(canvas, x.values, y.values);
    if (!info.unavailable.images) plot.thumbnail = (row) => imageAddress(row, 64);
    canvas.addEventListener("open", ({ detail }) => openRow(detail));
    canvas.addEventListener("choose", ({ detail }) => {
      select(detail);
      app.say(`${counted(detail.length, "image")} added to the selection.`);
    });
    canvas.addEventListener("moved", ({ detail: { x, y, scale } }) => {
      const whole = scale === 1 && x === 0.5 && y === 0.5;
      change({ at: whole ? "" : [x.toFixed(5), y.toFixed(5), scale.toFixed(3)].join(",") }, { replace: true });
    });
    canvas.addEventListener("hover", ({ detail }) => showTip(detail));
    paint();
  }

  // --- colours, filters, rings ---

  async function colour() {
    const [, kind, value] = /^(concept|text):(.*)$/s.exec(state.colour) ?? [];
    if (kind) {
      const { score } = await columns("api/scores", { [kind]: value });
      return continuous(score.values, value);
    }
    if (state.colour === "outcome") {
      const [own, predicted] = await Promise.all([column("class"), column("predicted")]);
      const codes = own.values.map((code, row) => Number(own.categories[code] !== predicted.categories[predicted.values[row]]));
      return categorical({ values: codes, categories: ["right", "wrong"] }, OUTCOME);
    }
    return categorical(await column(state.colour), PALETTE);
  }

  function categorical({ values, categories }, palette) {
    const inks = categories.map((_, code) => pixel(palette[code % palette.length]));
    const counts = new Uint32Array(categories.length + 1);
    const pixels = new Uint32Array(info.rows).fill(pixel(NONE));
    values.forEach((code, row) => {
      counts[Math.min(code, categories.length)] += 1;
      if (code !== UNKNOWN) pixels[row] = inks[code];
    });
    const filtered = { class: "class", split: "split", group: "group" }[state.colour];
    const entries = categories.slice(0, 60).map((name, code) => {
      const content = [h("span", { class: "dot", style: `--dot: ${palette[code % palette.length]}` }), h("span", {}, name), h("small", {}, number(counts[code]))];
      if (!filtered) return h("li", {}, h("span", { class: "entry" }, content));
      const pressed = state[filtered] === name;
      return h("li", {}, h("button", { type: "button", class: "entry", "aria-pressed": String(pressed), onclick: () => change({ [filtered]: pressed ? "" : name, chosen: "" }) }, content));
    });
    return { pixels, legend: h("ul", {}, entries, categories.length > 60 && h("li", { class: "muted" }, `and ${number(categories.length - 60)} more`)) };
  }

  function continuous(values, name) {
    const sorted = Float32Array.from(values).sort();
    const [low, high] = [sorted[Math.floor(sorted.length * 0.02)], sorted[Math.floor((sorted.length - 1) * 0.98)]];
    const inks = Array.from({ length: 256 }, (_, step) => pixel(blend(step / 255)));
    const pixels = new Uint32Array(values.length);
    values.forEach((value, row) => (pixels[row] = inks[Math.max(0, Math.min(255, Math.round(((value - low) / (high - low || 1)) * 255)))]));
    return {
      pixels,
      legend: h(
        "figure",
        { class: "scale" },
        h("figcaption", {}, `Similarity with “${name}”`),
        h("div", { class: "ramp" }),
        h("div", { class: "ends" }, h("span", {}, low.toFixed(2)), h("span", {}, high.toFixed(2))),
      ),
    };
  }

  async function shown() {
    const mask = new Uint8Array(info.rows).fill(1);
    for (const name of ["split", "class", "group"]) {
      if (!state[name]) continue;
      const { values, categories } = await column(name);
      const fits = categories.map((category) => category === state[name] || (name === "class" && info.multilabel && category.split("|").includes(state[name])));
      values.forEach((code, row) => (mask[row] &= Number(fits[code] ?? false)));
    }
    return mask;
  }

  async function rings() {
    const chosen = state.rings.split(",").filter((name) => name in RINGS);
    return Promise.all(
      chosen.map(async (name) => {
        const list = await (loaded[`rings ${name}`] ??= get(`api/errors/${name}`));
        if (list.unavailable) throw new Error(list.unavailable);
        const rows = name === "labels" ? list.rows.map(({ row }) => row) : list.pairs.flatMap((pair) => pair.rows.map(({ row }) => row));
        const [, colour, radius] = RINGS[name];
        return { rows, colour, radius };
      }),
    );
  }

  async function paint() {
    const turn = ++colouring;
    const style = getComputedStyle(document.documentElement);
    plot.ink = style.getPropertyValue("--ink").trim();
    plot.show({ paper: style.getPropertyValue("--raised").trim(), chosen: state.selection });
    const parts = await Promise.allSettled([colour(), shown(), rings()]);
    if (turn !== colouring) return;
    const [painted, mask, circles] = parts.map((part) => part.value);
    for (const part of parts) if (part.status === "rejected") app.say(part.reason.message);
    legend.replaceChildren(painted?.legend ?? "");
    plot.show({ pixels: painted?.pixels, shown: mask, rings: circles });
  }

  // --- controls ---

  function drawControls() {
    const options = [
      ["class", "class", info.classes.length > 0],
      ["split", "split", true],
      ["group", "patient or slide", info.groups > 0],
      ["predicted", "predicted class", !info.unavailable.predictions],
      ["outcome", "right or wrong", !info.unavailable.predictions && info.classes.length > 0 && !info.multilabel],
    ].filter(([, , there]) => there);
    const own = /^(concept|text):/.test(state.colour);
    const typed = state.colour.startsWith("text:");
    const list = h(
      "select",
      { id: "colour", onchange: () => change({ colour: list.value }) },
      options.map(([value, label]) => h("option", { value, selected: value === state.colour }, label)),
      info.concepts.length > 0 &&
        h("optgroup", { label: "concept" }, info.concepts.map(({ word }) => h("option", { value: `concept:${word}`, selected: state.colour === `concept:${word}` }, word))),
      own && typed && h("option", { value: state.colour, selected: true }, `“${state.colour.slice(5)}”`),
    );
    const boxes = Object.entries(RINGS).map(([name, [label]]) => {
      const box = h("input", {
        type: "checkbox",
        checked: state.rings.split(",").includes(name),
        onchange: () => {
          const names = new Set(state.rings.split(",").filter(Boolean));
          box.checked ? names.add(name) : names.delete(name);
          change({ rings: [...names].join(",") });
        },
      });
      return h("label", { class: `ring ${name}` }, box, ` ${label}`);
    });
    controls.replaceChildren(
      h("div", { class: "field" }, h("label", { for: "colour" }, "Colour by"), list),
      h("div", { class: "field rings" }, h("span", { class: "muted" }, "Ring"), ...boxes),
      ...filters(info, state.colour), // The legend filters by what the colours show.
    );
    const modes = [["move", "Move", "Drag to move, wheel to zoom"], ["lasso", "Lasso", "Draw around points (or hold Shift)"], ["box", "Box", "Drag a box around points"]];
    tools.replaceChildren(
      ...modes.map(([mode, label, title]) =>
        h("button", { type: "button", title, "aria-pressed": String((plot?.mode ?? "move") === mode), onclick: () => setMode(mode) }, label),
      ),
      h("button", { type: "button", title: "Zoom in", "aria-label": "Zoom in", onclick: () => plot.zoom(1.5) }, "+"),
      h("button", { type: "button", title: "Zoom out", "aria-label": "Zoom out", onclick: () => plot.zoom(1 / 1.5) }, "−"),
      h("button", { type: "button", onclick: () => plot.moveTo({ x: 0.5, y: 0.5, scale: 1 }) }, "Show all"),
      h("button", { type: "button", onclick: () => select(plot.inView()) }, "Select what is in view"),
    );
  }

  function setMode(mode) {
    plot.mode = mode;
    canvas.classList.toggle("circling", mode !== "move");
    drawControls();
  }

  let tipped = -1;
  async function showTip(row) {
    tipped = row;
    tip.hidden = true;
    if (row < 0) return;
    const [own, split] = await Promise.all([column("class"), column("split")]);
    if (tipped !== row) return;
    const [left, top] = plot.place(plot.hovered);
    tip.replaceChildren(
      ...(info.unavailable.images ? [] : [h("img", { src: imageAddress(row, 128), alt: "" })]),
      h("b", {}, own.categories[own.values[row]] ?? "no label"),
      h("span", {}, `row ${number(row)} · ${split.categories[split.values[row]]}`),
    );
    tip.style.setProperty("--x", `${Math.min(Math.max(left, 80), plot.width - 80)}px`);
    tip.style.setProperty("--y", `${top}px`);
    tip.classList.toggle("below", top < 190);
    tip.hidden = false;
  }

  const applyView = () => {
    const [x, y, scale] = state.at.split(",").map(Number);
    const view = scale > 0 ? { x, y, scale } : { x: 0.5, y: 0.5, scale: 1 };
    if (Object.keys(view).some((name) => Math.abs(view[name] - plot.view[name]) > 1e-3)) plot.moveTo(view);
  };

  subscribe((changes) => {
    if (!plot || root.hidden) return;
    if (changes.selection) plot.show({ chosen: state.selection });
    if (["colour", "rings", "split", "class", "group"].some((name) => name in changes)) {
      drawControls();
      paint();
    }
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot && paint());

  return {
    async show() {
      drawControls();
      if (!plot) await start();
      else paint();
      drawControls();
      applyView();
    },
  };
}

/** A colour of the scale, from 0 to 1. */
function blend(share) {
  const at = share * (SCALE.length - 1);
  const [one, other] = [SCALE[Math.floor(at)], SCALE[Math.min(SCALE.length - 1, Math.floor(at) + 1)]];
  const mixed = [1, 3, 5].map((start) => {
    const [a, b] = [one, other].map((colour) => parseInt(colour.slice(start, start + 2), 16));
    return Math.round(a + (b - a) * (at % 1)).toString(16).padStart(2, "0");
  });
  return `#${mixed.join("")}`;
}
