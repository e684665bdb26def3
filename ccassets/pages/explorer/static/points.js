// A scatter plot of up to millions of points, drawn into a pixel buffer on the processor: no WebGL is needed.

const PAUSE = 150; // ms after the last movement, until everything is drawn at full resolution
const NEAR = 14; // CSS pixels around the pointer in which a point is hit
const MOST_THUMBNAILS = 90;
const THUMBNAIL = 44;
const MOST_RINGS = 3000;

/** Whether a point lies inside a polygon [x0, y0, x1, y1, …] by the even-odd rule. */
export function isInside(polygon, x, y) {
  let inside = false;
  for (let i = 0, j = polygon.length - 2; i < polygon.length; j = i, i += 2) {
    const above = polygon[i + 1] > y;
    if (above !== polygon[j + 1] > y) {
      const crossing = ((polygon[j] - polygon[i]) * (y - polygon[i + 1])) / (polygon[j + 1] - polygon[i + 1]) + polygon[i];
      if (x < crossing) inside = !inside;
    }
  }
  return inside;
}

/** Points in the cells of a uniform grid: what is near one another stands together. */
export class Grid {
  constructor(x, y) {
    const count = x.length;
    let [left, right, top, bottom] = [Infinity, -Infinity, Infinity, -Infinity];
    for (let i = 0; i < count; i++) {
      if (x[i] < left) left = x[i];
      if (x[i] > right) right = x[i];
      if (y[i] < top) top = y[i];
      if (y[i] > bottom) bottom = y[i];
    }
    const extent = Math.max(right - left, bottom - top) || 1;
    this.side = Math.max(1, Math.min(1024, Math.ceil(Math.sqrt(count / 4))));
    this.x = new Float32Array(count);
    this.y = new Float32Array(count);
    this.row = new Uint32Array(count);
    this.start = new Uint32Array(this.side * this.side + 1);
    const cells = new Uint32Array(count);
    // All lies in a square from 0 to 1, in its middle; y goes down, as pixels do.
    const [shiftX, shiftY] = [(1 - (right - left) / extent) / 2, (1 - (bottom - top) / extent) / 2];
    const unitX = new Float32Array(count);
    const unitY = new Float32Array(count);
    for (let i = 0; i < count; i++) {
      unitX[i] = (x[i] - left) / extent + shiftX;
      unitY[i] = (bottom - y[i]) / extent + shiftY;
      cells[i] = this.line(unitY[i]) * this.side + this.line(unitX[i]);
      this.start[cells[i] + 1]++;
    }
    for (let cell = 0; cell < this.side * this.side; cell++) this.start[cell + 1] += this.start[cell];
    const next = this.start.slice();
    for (let i = 0; i < count; i++) {
      const at = next[cells[i]]++;
      this.row[at] = i;
      this.x[at] = unitX[i];
      this.y[at] = unitY[i];
    }
  }

  /** The column or line of cells of a coordinate. */
  line(value) {
    return Math.max(0, Math.min(this.side - 1, Math.floor(value * this.side)));
  }

  /** The rows inside a polygon, exactly; whole cells at once where no edge crosses them. */
  inside(polygon) {
    const { side, start } = this;
    const crossed = new Uint8Array(side * side);
    let [first, last] = [side, -1];
    for (let i = 0, j = polygon.length - 2; i < polygon.length; j = i, i += 2) {
      let [x0, y0, x1, y1] = [polygon[j], polygon[j + 1], polygon[i], polygon[i + 1]];
      if (y0 > y1) [x0, y0, x1, y1] = [x1, y1, x0, y0];
      const [from, to] = [this.line(y0), this.line(y1)];
      first = Math.min(first, from);
      last = Math.max(last, to);
      for (let line = from; line <= to; line++) {
        const along = (y) => (y1 > y0 ? x0 + ((x1 - x0) * (Math.min(y1, Math.max(y0, y)) - y0)) / (y1 - y0) : x0);
        const [a, b] = y1 > y0 ? [along(line / side), along((line + 1) / side)] : [x0, x1];
        const [low, high] = [this.line(Math.min(a, b)) - 1, this.line(Math.max(a, b)) + 1];
        for (let cell = Math.max(0, low); cell <= Math.min(side - 1, high); cell++) crossed[line * side + cell] = 1;
      }
    }
    const rows = [];
    for (let line = first; line <= last; line++) {
      let whole; // The same for neighbours that no edge crosses.
      for (let column = 0; column < side; column++) {
        const cell = line * side + column;
        if (crossed[cell]) whole = undefined;
        else whole ??= isInside(polygon, (column + 0.5) / side, (line + 0.5) / side);
        if (!whole && !crossed[cell]) continue;
        for (let i = start[cell]; i < start[cell + 1]; i++) {
          if (whole || isInside(polygon, this.x[i], this.y[i])) rows.push(this.row[i]);
        }
      }
    }
    return rows;
  }

  /** The position (not the row) of the nearest point that is shown within a distance; -1 without one. */
  nearest(x, y, distance, shown) {
    let [best, nearest] = [distance * distance, -1];
    const [left, right] = [this.line(x - distance), this.line(x + distance)];
    for (let line = this.line(y - distance); line <= this.line(y + distance); line++) {
      for (let i = this.start[line * this.side + left]; i < this.start[line * this.side + right + 1]; i++) {
        const apart = (this.x[i] - x) ** 2 + (this.y[i] - y) ** 2;
        if (apart <= best && shown[this.row[i]]) [best, nearest] = [apart, i];
      }
    }
    return nearest;
  }
}

/** A colour such as "#0072b2" as a pixel of the buffer. */
export function pixel(colour) {
  const value = parseInt(colour.slice(1), 16);
  return (0xff000000 | ((value & 0xff) << 16) | (value & 0xff00) | (value >> 16)) >>> 0;
}

/**
 * The plot. Events on the canvas: `hover` (row or -1), `open` (row), `choose` (rows), `moved` (centre and scale).
 */
export class PointPlot {
  constructor(canvas, x, y) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.grid = new Grid(x, y);
    this.count = x.length;
    this.pixels = new Uint32Array(this.count).fill(0xff888888); // by row
    this.shown = new Uint8Array(this.count).fill(1); // by row
    this.chosen = new Uint8Array(this.count); // by row
    this.hasChosen = false;
    this.layers = null; // what is drawn of all this
    this.drawn = null; // what the buffer holds: where the origin of the data lies in it, and the pixels of a unit
    this.rings = []; // {rows, colour}
    this.thumbnail = null; // row → address of its picture
    this.images = new Map();
    this.paper = "#ffffff";
    this.mode = "move";
    this.path = [];
    this.view = { x: 0.5, y: 0.5, scale: 1 };
    this.pointers = new Map();
    this.listen();
    new ResizeObserver(() => this.resize()).observe(canvas);
    this.resize();
  }

  // --- what is shown ---

  show({ pixels, shown, chosen, rings, paper }) {
    if (pixels) this.pixels = pixels;
    if (shown) this.shown = shown;
    if (rings) this.rings = rings;
    if (paper) this.paper = paper;
    if (chosen) {
      this.chosen = new Uint8Array(this.count);
      for (const row of chosen) if (row < this.count) this.chosen[row] = 1;
      this.hasChosen = chosen.size > 0;
    }
    this.layers = this.drawn = null;
    this.invalidate();
  }

  resize() {
    const box = this.canvas.getBoundingClientRect();
    if (!box.width || !box.height) return;
    this.width = box.width;
    this.height = box.height;
    this.invalidate();
  }

  /** Pixels of a unit when everything is in view. */
  get fitted() {
    return Math.min(this.width, this.height) * 0.92;
  }

  moveTo(view) {
    this.view = { ...view, scale: Math.max(0.5, Math.min(20_000, view.scale)) };
    this.invalidate();
    this.moving = true;
    this.waitForRest();
  }

  waitForRest() {
    clearTimeout(this.rest);
    this.rest = setTimeout(() => {
      if (this.pointers.size) return; // A slow frame is no rest: until the button is released.
      this.moving = false;
      this.invalidate();
      this.emit("moved", this.view);
    }, PAUSE);
  }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const [dataX, dataY] = this.data(x, y);
    const scale = Math.max(0.5, Math.min(20_000, this.view.scale * factor));
    const unit = this.fitted * scale;
    this.moveTo({ x: dataX - (x - this.width / 2) / unit, y: dataY - (y - this.height / 2) / unit, scale });
  }

  pan(x, y) {
    const unit = this.fitted * this.view.scale;
    this.moveTo({ ...this.view, x: this.view.x - x / unit, y: this.view.y - y / unit });
  }

  /** The point of the data under a point of the canvas, in CSS pixels. */
  data(x, y) {
    const unit = this.fitted * this.view.scale;
    return [this.view.x + (x - this.width / 2) / unit, this.view.y + (y - this.height / 2) / unit];
  }

  /** The rows that are shown in the window. */
  inView() {
    return this.positionsInView(Infinity).map((position) => this.grid.row[position]);
  }

  /** The positions (not the rows) of what is shown in the window, at most so many. */
  positionsInView(most) {
    const { grid, shown } = this;
    const [left, top] = this.data(0, 0);
    const [right, bottom] = this.data(this.width, this.height);
    const [first, last] = [grid.line(left), grid.line(right)];
    const positions = [];
    for (let line = grid.line(top); line <= grid.line(bottom); line++) {
      for (let i = grid.start[line * grid.side + first]; i < grid.start[line * grid.side + last + 1]; i++) {
        const [x, y] = [grid.x[i], grid.y[i]];
        if (x < left || x > right || y < top || y > bottom || !shown[grid.row[i]]) continue;
        positions.push(i);
        if (positions.length === most) return positions;
      }
    }
    return positions;
  }

  // --- drawing ---

  invalidate() {
    this.pending ??= requestAnimationFrame(() => {
      this.pending = undefined;
      if (this.width) this.draw();
    });
  }

  /** The size of a point in CSS pixels: small where there are many, larger when near. */
  get size() {
    const base = this.count > 200_000 ? 1 : this.count > 20_000 ? 2 : this.count > 4000 ? 4 : 7;
    return Math.min(14, base * Math.max(1, this.view.scale) ** 0.35);
  }

  draw() {
    const ratio = this.moving ? 1 : Math.min(3, devicePixelRatio || 1);
    const [width, height] = [Math.round(this.width * ratio), Math.round(this.height * ratio)];
    if (this.canvas.width !== width || this.canvas.height !== height || !this.buffer) {
      this.canvas.width = width;
      this.canvas.height = height;
      this.buffer = this.context.createImageData(width, height);
      this.target = new Uint32Array(this.buffer.data.buffer);
      this.drawn = null;
    }
    this.drawPoints(width, height, ratio);
    this.context.putImageData(this.buffer, 0, 0);
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (this.thumbnail && !this.moving) this.drawThumbnails();
    this.drawRings();
    this.drawPath();
  }

  /** Bring the buffer in line with the view. While it moves, only what comes into view is drawn; at rest, everything. */
  drawPoints(width, height, ratio) {
    const unit = this.fitted * this.view.scale * ratio;
    const [x, y] = [width / 2 - this.view.x * unit, height / 2 - this.view.y * unit];
    const last = this.drawn?.unit === unit && this.drawn;
    if (last && last.x === x && last.y === y) return;
    const [right, down] = [Math.round(x - last.x), Math.round(y - last.y)]; // Not numbers without a last one.
    if (!this.moving || !(Math.abs(right) < width && Math.abs(down) < height)) {
      this.drawn = { unit, x, y };
      this.plot(width, ratio, [0, 0, width, height]);
      return;
    }
    this.drawn = { unit, x: last.x + right, y: last.y + down };
    const by = down * width + right;
    if (by > 0) this.target.copyWithin(by, 0);
    else this.target.copyWithin(0, -by);
    if (right) this.plot(width, ratio, right > 0 ? [0, 0, right, height] : [width + right, 0, width, height]);
    if (down) this.plot(width, ratio, down > 0 ? [0, 0, width, down] : [0, height + down, width, height]);
  }

  /** Draw a rectangle of the buffer, which is `width` pixels wide, anew. */
  plot(width, ratio, [left, top, right, bottom]) {
    const { grid, target } = this;
    const { unit, x: originX, y: originY } = this.drawn;
    const paper = pixel(this.paper);
    for (let y = top; y < bottom; y++) target.fill(paper, y * width + left, y * width + right);
    this.layers ??= this.makeLayers();
    for (const { inks, larger } of this.layers) {
      const diameter = Math.max(1, Math.round((this.size + larger) * ratio));
      const before = Math.floor(diameter / 2);
      const spans = circle(diameter);
      const [shiftX, shiftY] = [originX + 0.5 - before, originY + 0.5 - before];
      const cells = (from, to, origin) => [grid.line((from - diameter - origin) / unit), grid.line((to + diameter - origin) / unit)];
      const [firstColumn, lastColumn] = cells(left, right, originX);
      const [firstLine, lastLine] = cells(top, bottom, originY);
      for (let line = firstLine; line <= lastLine; line++) {
        const end = grid.start[line * grid.side + lastColumn + 1];
        for (let i = grid.start[line * grid.side + firstColumn]; i < end; i++) {
          const ink = inks[i];
          if (!ink) continue;
          const x = Math.floor(grid.x[i] * unit + shiftX);
          const y = Math.floor(grid.y[i] * unit + shiftY);
          if (x <= left - diameter || y <= top - diameter || x >= right || y >= bottom) continue;
          if (diameter === 1) {
            target[y * width + x] = ink;
            continue;
          }
          for (let dy = Math.max(0, top - y); dy < diameter && y + dy < bottom; dy++) {
            const at = (y + dy) * width;
            const to = at + Math.min(right, x + diameter - spans[dy]);
            for (let offset = at + Math.max(left, x + spans[dy]); offset < to; offset++) target[offset] = ink;
          }
        }
      }
    }
  }

  /** Inks in the order of the grid, 0 for none: of all points, or of the others, faint, and of the chosen ones on top. */
  makeLayers() {
    const { grid, pixels, shown, chosen } = this;
    const [below, above] = [new Uint32Array(this.count), this.hasChosen ? new Uint32Array(this.count) : null];
    const faint = ((pixel(this.paper) & 0xfcfcfc) >>> 2) * 3;
    for (let i = 0; i < this.count; i++) {
      const row = grid.row[i];
      if (!shown[row]) continue;
      if (!above) below[i] = pixels[row];
      else if (chosen[row]) above[i] = pixels[row];
      else below[i] = (0xff000000 | (((pixels[row] & 0xfcfcfc) >>> 2) + faint)) >>> 0;
    }
    return above ? [{ inks: below, larger: 0 }, { inks: above, larger: 1 }] : [{ inks: below, larger: 0 }];
  }

  /** Position on the canvas, in CSS pixels, of a point. */
  place(position) {
    const unit = this.fitted * this.view.scale;
    return [
      (this.grid.x[position] - this.view.x) * unit + this.width / 2,
      (this.grid.y[position] - this.view.y) * unit + this.height / 2,
    ];
  }

  drawThumbnails() {
    if (this.view.scale < 1.5) return;
    const positions = this.positionsInView(MOST_THUMBNAILS + 1);
    if (positions.length > MOST_THUMBNAILS) return;
    const { context } = this;
    for (const position of positions) {
      const row = this.grid.row[position];
      const image = this.picture(row);
      if (!image.complete || !image.naturalWidth) continue;
      const [x, y] = this.place(position);
      const scale = THUMBNAIL / Math.max(image.naturalWidth, image.naturalHeight);
      const [width, height] = [image.naturalWidth * scale, image.naturalHeight * scale];
      context.drawImage(image, x - width / 2, y - height / 2, width, height);
      context.lineWidth = 2.5;
      context.strokeStyle = cssColour(this.pixels[row]);
      context.strokeRect(x - width / 2, y - height / 2, width, height);
    }
  }

  picture(row) {
    let image = this.images.get(row);
    if (!image) {
      image = new Image();
      image.onload = () => this.invalidate();
      image.src = this.thumbnail(row);
      this.images.set(row, image);
      if (this.images.size > 4 * MOST_THUMBNAILS) this.images.delete(this.images.keys().next().value);
    }
    return image;
  }

  drawRings() {
    const { context } = this;
    if (this.rings.length && !this.positions) {
      this.positions = new Uint32Array(this.count);
      for (let i = 0; i < this.count; i++) this.positions[this.grid.row[i]] = i;
    }
    for (const { rows, colour, radius } of this.rings) {
      context.strokeStyle = colour;
      context.lineWidth = 2;
      context.beginPath();
      for (const row of rows.slice(0, MOST_RINGS)) {
        if (!this.shown[row]) continue;
        const [x, y] = this.place(this.positions[row]);
        context.moveTo(x + radius, y);
        context.arc(x, y, radius, 0, 2 * Math.PI);
      }
      context.stroke();
    }
    if (this.hovered >= 0) {
      const [x, y] = this.place(this.hovered);
      context.strokeStyle = this.ink ?? "#000";
      context.lineWidth = 2;
      context.beginPath();
      context.arc(x, y, this.size / 2 + 4, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  drawPath() {
    if (this.path.length < 4) return;
    const { context } = this;
    context.beginPath();
    for (let i = 0; i < this.path.length; i += 2) context.lineTo(this.path[i], this.path[i + 1]);
    context.closePath();
    context.fillStyle = "rgba(0, 114, 178, 0.15)";
    context.strokeStyle = "#0072b2";
    context.lineWidth = 1.5;
    context.fill();
    context.stroke();
  }

  // --- the pointer and the keyboard ---

  emit(name, detail) {
    this.canvas.dispatchEvent(new CustomEvent(name, { detail }));
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.drag(event));
    canvas.addEventListener("pointerup", (event) => this.release(event));
    canvas.addEventListener("pointercancel", (event) => this.release(event));
    canvas.addEventListener("pointerleave", () => this.hover(-1));
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  wheel(event) {
    event.preventDefault();
    this.zoom(Math.exp(-Math.max(-300, Math.min(300, event.deltaY)) * 0.002), ...this.at(event));
  }

  press(event) {
    if (event.button) return;
    const [x, y] = this.at(event);
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [x, y]);
    this.pressed = [x, y];
    this.travelled = 0;
    this.tool = this.pointers.size > 1 ? "move" : event.shiftKey && this.mode === "move" ? "lasso" : this.mode;
    this.path = this.tool === "move" ? [] : [x, y];
  }

  drag(event) {
    const [x, y] = this.at(event);
    const last = this.pointers.get(event.pointerId);
    if (!last) {
      const unit = this.fitted * this.view.scale;
      this.hover(this.grid.nearest(...this.data(x, y), NEAR / unit, this.shown));
      return;
    }
    this.pointers.set(event.pointerId, [x, y]);
    this.travelled += Math.abs(x - last[0]) + Math.abs(y - last[1]);
    if (this.pointers.size === 2) {
      const [other] = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
      const distance = ([ax, ay], [bx, by]) => Math.hypot(ax - bx, ay - by) || 1;
      this.zoom(distance([x, y], other) / distance(last, other), (x + other[0]) / 2, (y + other[1]) / 2);
    } else if (this.tool === "move") {
      this.pan(x - last[0], y - last[1]);
    } else if (this.tool === "lasso") {
      this.path.push(x, y);
      this.invalidate();
    } else {
      const [left, top] = this.pressed;
      this.path = [left, top, x, top, x, y, left, y];
      this.invalidate();
    }
  }

  release(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    if (this.moving) this.waitForRest();
    const [x, y] = this.at(event);
    const path = this.path;
    this.path = [];
    if (this.travelled < 5) {
      const unit = this.fitted * this.view.scale;
      const nearest = this.grid.nearest(...this.data(x, y), NEAR / unit, this.shown);
      if (nearest >= 0) this.emit("open", this.grid.row[nearest]);
    } else if (path.length >= 6) {
      const polygon = new Float64Array(path.length);
      for (let i = 0; i < path.length; i += 2) [polygon[i], polygon[i + 1]] = this.data(path[i], path[i + 1]);
      this.emit("choose", this.grid.inside(polygon).filter((row) => this.shown[row]));
    }
    this.invalidate();
  }

  hover(position) {
    if (position === this.hovered) return;
    this.hovered = position;
    this.emit("hover", position < 0 ? -1 : this.grid.row[position]);
    this.invalidate();
  }

  key(event) {
    const step = 60;
    const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (moves[event.key]) this.pan(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") this.zoom(1.4);
    else if (event.key === "-") this.zoom(1 / 1.4);
    else if (event.key === "0") this.moveTo({ x: 0.5, y: 0.5, scale: 1 });
    else if (event.key === "Enter" && this.hovered >= 0) this.emit("open", this.grid.row[this.hovered]);
    else return;
    event.preventDefault();
    if (event.key !== "Enter") this.hover(this.grid.nearest(this.view.x, this.view.y, 0.1 / this.view.scale, this.shown));
  }
}

const circles = new Map();
/** By line of a circle of that diameter: how many pixels stay free at each end. */
function circle(diameter) {
  if (!circles.has(diameter)) {
    const radius = diameter / 2;
    const lines = Array.from({ length: diameter }, (_, line) => {
      const height = line + 0.5 - radius;
      return diameter < 4 ? 0 : Math.round(radius - Math.sqrt(radius * radius - height * height));
    });
    circles.set(diameter, Int32Array.from(lines));
  }
  return circles.get(diameter);
}

const cssColour = (value) => `rgb(${value & 0xff} ${(value >> 8) & 0xff} ${(value >> 16) & 0xff})`;
