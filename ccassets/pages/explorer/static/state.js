// The state that all views share, and its address: whoever opens the link sees the same.

const DEFAULTS = {
  view: "map",
  query: "", // text:…, concept:…, row:N, patch:N:M, image:NAME; without one the rows in the order of the file
  split: "",
  class: "",
  group: "",
  chosen: "", // "1": the gallery shows the selection
  row: "",
  heat: "", // text:… or concept:…
  colour: "class", // class, split, group, predicted, outcome, concept:…, text:…
  rings: "", // labels, duplicates, with a comma between them
  at: "", // centre and scale of the map
  list: "confident",
};
const LONGEST_ADDRESS = 30_000;

export const state = { ...DEFAULTS, selection: new Set(), labels: new Map() };

const ranges = new WeakMap(); // by selection, which is replaced and never changed: it may hold all rows

const listeners = [];
export const subscribe = (listener) => listeners.push(listener);

/** Change some of the state, write its address, and tell all views. */
export function change(changes, { replace = false } = {}) {
  Object.assign(state, changes);
  if (addressOf(state) !== location.hash) writeAddress(replace);
  for (const listener of listeners) listener(changes);
}

const writeAddress = (replace) => history[replace ? "replaceState" : "pushState"]({ own: true }, "", addressOf(state) || "#");

/** The way back to a view of this page: what was selected or corrected since stays so. */
export function goBack({ state: entry }) {
  const { selection, labels } = state;
  readAddress(entry?.own ? { selection, labels } : {});
}

/** Take the state from the address, but for the rows that are given. */
export function readAddress(kept = {}) {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const [name, value] of Object.entries(DEFAULTS)) state[name] = given.get(name) ?? value;
  state.selection = new Set(parseRanges(given.get("rows") ?? ""));
  state.labels = new Map((given.get("labels") ?? "").split(".").filter(Boolean).map((pair) => pair.split(":").map(Number)));
  Object.assign(state, kept);
  writeAddress(true);
  for (const listener of listeners) listener({ ...state });
}

/** The address of a state; a selection that is too long for it is left out. */
export function addressOf(wanted) {
  const parts = new URLSearchParams();
  for (const [name, value] of Object.entries(DEFAULTS)) if (wanted[name] !== value) parts.set(name, wanted[name]);
  if (!ranges.has(wanted.selection)) ranges.set(wanted.selection, formatRanges(wanted.selection));
  const rows = ranges.get(wanted.selection);
  if (rows && rows.length < LONGEST_ADDRESS) parts.set("rows", rows);
  const labels = [...wanted.labels].map((pair) => pair.join(":")).join(".");
  if (labels && labels.length < LONGEST_ADDRESS) parts.set("labels", labels);
  const text = parts.toString();
  return text ? `#${text}` : "";
}

export function formatRanges(rows) {
  const sorted = Uint32Array.from(rows).sort();
  const ranges = [];
  for (let first = 0; first < sorted.length; ) {
    let last = first;
    while (last + 1 < sorted.length && sorted[last + 1] === sorted[last] + 1) last++;
    ranges.push(last > first ? `${sorted[first]}-${sorted[last]}` : `${sorted[first]}`);
    first = last + 1;
  }
  return ranges.join(".");
}

export function* parseRanges(text) {
  for (const range of text.split(".").filter((part) => /^\d+(-\d+)?$/.test(part))) {
    const [first, last = first] = range.split("-").map(Number);
    for (let row = first; row <= last && row < first + 10_000_000; row++) yield row;
  }
}

/** The parameters of the API for a query such as `text:granules`. */
export function queryParameters(query) {
  const [, kind, value] = /^(text|concept|row|patch|image):(.*)$/s.exec(query) ?? [];
  return kind ? { [kind]: value } : {};
}

/** Add rows to the selection, or take them away. */
export function select(rows, present = true) {
  const selection = new Set(state.selection);
  for (const row of rows) present ? selection.add(row) : selection.delete(row);
  change({ selection }, { replace: true });
}
