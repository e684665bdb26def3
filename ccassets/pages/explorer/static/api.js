// Requests to the server's own API, and building of elements. Texts from data become text nodes, never markup.

const TYPES = { float32: Float32Array, uint16: Uint16Array, int64: BigInt64Array };

/** A request that the server refused; its message is the server's sentence. */
export class Refused extends Error {}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The explorer no longer answers. Start it again with `ccassets explore`.");
  }
  if (!response.ok) {
    const said = await response.json().catch(() => ({ error: response.statusText }));
    throw new Refused(said.error);
  }
  return response;
}

export function address(path, parameters = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value !== undefined && value !== null);
  const query = new URLSearchParams(given).toString();
  return query ? `${path}?${query}` : path;
}

export const get = async (path, parameters, signal) => (await request(address(path, parameters), { signal })).json();

export const post = (path, parameters, content) =>
  request(address(path, parameters), {
    method: "POST",
    headers: { "Content-Type": content instanceof Blob ? "application/octet-stream" : "application/json" },
    body: content instanceof Blob ? content : JSON.stringify(content),
  });

/** Columns of all rows by name: {values, categories}. */
export async function columns(path, parameters, signal) {
  const buffer = await (await request(address(path, parameters), { signal })).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  return Object.fromEntries(
    header.columns.map(({ name, type, offset, length, categories }) => [
      name,
      { values: new TYPES[type](buffer, offset, length), categories },
    ]),
  );
}

export const imageAddress = (row, side) => address(`api/rows/${row}/image`, { side });

/** Save what a response holds as a file of the name that it has. */
export async function download(response) {
  const name = /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition"))?.[1] ?? "selection";
  const link = h("a", { href: URL.createObjectURL(await response.blob()), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** An element: attributes, listeners (onclick) and properties (class, value, checked, …), then children. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") element.style.cssText = value; // The policy allows no attribute.
    else if (name === "value" || name === "checked") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== undefined && child !== null && child !== false));
  return element;
}

export const number = (value) => value.toLocaleString("en");

const RULES = new Intl.PluralRules("en");
export const counted = (count, noun) => `${number(count)} ${noun}${RULES.select(count) === "one" ? "" : "s"}`;

export const signed = (value, digits) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;
