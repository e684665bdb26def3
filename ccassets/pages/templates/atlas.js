"use strict";
// The charts of the atlas, drawn by plotly when they come into view, from the numbers in #data.
const data = JSON.parse(document.getElementById("data").textContent);
const narrow = () => window.innerWidth < 640;
// plotly reads some tags in texts; names from data are shown as they are.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const cut = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);
const percent = (value) => (100 * value).toFixed(1) + " %";
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(1);

function theme() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return { ink: of("--ink"), muted: of("--muted"), line: of("--line"), paper: of("--raised"), accent: of("--accent"), pos: of("--pos"), neg: of("--neg") };
}

function axis(colours, title, extra) {
  return { title: { text: title, standoff: 8 }, gridcolor: colours.line, zerolinecolor: colours.line, linecolor: colours.line, automargin: true, ...extra };
}

function layout(colours, extra) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false, hovermode: "closest",
    font: { family: "system-ui, sans-serif", size: 12, color: colours.ink },
    margin: { l: 8, r: 8, t: 8, b: 8 }, legend: { orientation: "h", y: -0.18, x: 0 },
    hoverlabel: { bgcolor: colours.paper, bordercolor: colours.line, font: { color: colours.ink } }, ...extra,
  };
}

function interval(estimates) {
  const reach = (found, limit) => found[limit] === null ? null : Math.abs(found[limit] - found.value);
  return {
    type: "data", symmetric: false, thickness: 1.2, width: 4,
    array: estimates.map((found) => reach(found, "high")), arrayminus: estimates.map((found) => reach(found, "low")),
  };
}

const accuracyAxis = (colours, title) => axis(colours, title, { tickformat: ".0%" });
const level = (value, colour, dash) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value, line: { color: colour, width: 1.2, dash } });

const charts = {
  // One concept's scores by class; a few are points, since their shape would be invented.
  ridge(place, colours) {
    const scores = data.scores[Number(place.dataset.concept)];
    const counts = data.classes.map((_, label) => data.points.label.filter((own) => own === label).length);
    const traces = data.classes.map((name, label) => {
      const values = scores.filter((_, point) => data.points.label[point] === label);
      if (values.length < data.fewest) return {
        type: "scatter", mode: "markers", x: values, y: values.map(() => label), name: plain(name), hoverinfo: "x+name",
        marker: { color: data.colours[label], size: 7, opacity: 0.8, line: { width: 0.5, color: colours.paper } },
      };
      return {
        type: "violin", orientation: "h", side: "negative", width: 1.7, points: false, x: values, y: values.map(() => label),
        name: plain(name), line: { color: data.colours[label], width: 1.3 }, fillcolor: data.colours[label] + "66", meanline: { visible: true },
        hoverinfo: "x+name", hoveron: "kde", spanmode: "soft",
      };
    }).filter((trace) => trace.x.length);
    const height = 70 + 34 * data.classes.length;
    return [traces, layout(colours, {
      height, showlegend: false, violinmode: "overlay",
      xaxis: axis(colours, narrow() ? `score in SD of ${data.standard}` : `score in standard deviations of ${data.standard}`, { zeroline: true }),
      yaxis: axis(colours, "", { tickvals: data.classes.map((_, label) => label), ticktext: data.classes.map((name, label) => plain(cut(name, 24)) + ` (${counts[label]})`), range: [data.classes.length - 0.6, -1.1], zeroline: false }),
    })];
  },
  // All images by their features, coloured by class or by one concept.
  map(_, colours) {
    const chosen = document.getElementById("map-colour").value;
    const points = data.points;
    const every = points.x.map((_, point) => point);
    const trace = (rows, extra) => ({
      type: "scatter", mode: "markers", x: rows.map((row) => points.x[row]), y: rows.map((row) => points.y[row]),
      customdata: rows, hoverinfo: "none", ...extra,
    });
    const size = every.length > 1000 ? 5 : 7;
    const groups = {
      class: data.classes.map((name, label) => [name, data.colours[label], every.filter((row) => points.label[row] === label)]),
      split: data.splits.map(([name, colour]) => [name, colour, every.filter((row) => points.split[row] === name)]),
    }[chosen];
    const traces = groups
      ? groups.map(([name, colour, rows]) => trace(rows, {
          name: plain(name), marker: { color: colour, size, opacity: 0.85, line: { width: 0.5, color: colours.paper } },
        }))
      : [trace(every, {
          marker: {
            color: data.scores[Number(chosen)], cmin: -3, cmax: 3, size, opacity: 0.9, line: { width: 0.5, color: colours.muted },
            colorscale: [[0, colours.neg], [0.5, colours.paper], [1, colours.pos]],
            colorbar: { title: { text: "score" }, thickness: 10, outlinewidth: 0, len: 0.7 },
          },
        })];
    return [traces, layout(colours, {
      // A finger that drags scrolls the page.
      dragmode: matchMedia("(pointer: fine)").matches ? "zoom" : false, uirevision: "map",
      height: narrow() ? 440 : 540, showlegend: Boolean(groups), legend: { orientation: "h", y: -0.1, x: 0 },
      xaxis: axis(colours, "first principal component", { showticklabels: false, showgrid: false, zeroline: false }),
      yaxis: axis(colours, "second", { showticklabels: false, showgrid: false, zeroline: false }),
    })];
  },
  // Accuracy with few concepts a class.
  sparse(_, colours) {
    const found = data.fitted.sparse[data.held].points;
    const whole = data.fitted.splits[data.held].accuracy.value;
    const probe = data.fitted.controls.controls.find((control) => control.name === "linear probe");
    const line = (name, value, colour, dash) => ({ x: [found[0].level, found.at(-1).level], y: [value, value], name, mode: "lines", line: { color: colour, dash, width: 1.4 }, hovertemplate: percent(value) + "<extra>" + name + "</extra>" });
    return [[
      { x: found.map((point) => point.level), y: found.map((point) => point.accuracy.value), error_y: interval(found.map((point) => point.accuracy)), name: "sparse classifier", mode: "lines+markers", line: { color: colours.accent, width: 2 }, marker: { size: 8 }, hovertemplate: "%{x} concepts a class: %{y:.1%}<extra></extra>" },
      line("all concepts", whole, colours.pos, "dash"),
      line("linear probe on the features", probe.estimate.value, colours.muted, "dot"),
    ], layout(colours, { height: 340, xaxis: axis(colours, "effective concepts a class (NEC)", { zeroline: false, dtick: 5 }), yaxis: accuracyAxis(colours, "accuracy on " + data.held) })];
  },
  levels(_, colours) {
    const found = data.fitted.levels;
    return [[
      { x: found.map((point) => point.concepts), y: found.map((point) => point.accuracy.value), error_y: interval(found.map((point) => point.accuracy)), mode: "lines+markers", line: { color: colours.accent, width: 2 }, marker: { size: 8 }, text: found.map((point) => point.level), hovertemplate: "%{x} concepts, up to level %{text}: %{y:.1%}<extra></extra>" },
    ], layout(colours, { height: 340, showlegend: false, xaxis: axis(colours, "number of concepts"), yaxis: accuracyAxis(colours, "accuracy on " + data.held) })];
  },
  // Whether a probability means what it says.
  reliability(_, colours) {
    const methods = [["zero-shot", data.zero, colours.pos], ["concept classifier", data.fitted.splits, colours.accent]];
    const last = (splits) => Object.values(splits || {}).at(-1)?.reliability;
    const traces = methods.filter(([, splits]) => last(splits)).map(([name, splits, colour]) => {
      const bins = last(splits);
      const filled = bins.count.map((_, bin) => bin).filter((bin) => bins.count[bin]);
      const most = Math.max(...bins.count);
      return {
        name, mode: "lines+markers", x: filled.map((bin) => bins.confidence[bin]), y: filled.map((bin) => bins.accuracy[bin]),
        line: { color: colour, width: 1.5 }, marker: { size: filled.map((bin) => 5 + 15 * Math.sqrt(bins.count[bin] / most)), opacity: 0.85 },
        text: filled.map((bin) => bins.count[bin]), hovertemplate: "said %{x:.0%}, right %{y:.0%} of %{text} images<extra>" + name + "</extra>",
      };
    });
    traces.unshift({ x: [0, 1], y: [0, 1], mode: "lines", line: { color: colours.muted, dash: "dot", width: 1 }, hoverinfo: "skip", showlegend: false });
    return [traces, layout(colours, {
      height: 340, xaxis: accuracyAxis(colours, "probability of the predicted class"), yaxis: axis(colours, "share that is right", { tickformat: ".0%", range: [-0.03, 1.05] }),
    })];
  },
  // Accuracy when concepts are set to the truth.
  intervention(_, colours) {
    const curves = data.fitted.truth.interventions;
    const names = { random: "in random order", uncertainty: "the most doubtful first" };
    return [curves.map((curve, number) => ({
      name: names[curve.order], x: curve.accuracy.map((_, count) => count), y: curve.accuracy, mode: "lines+markers",
      line: { color: number ? colours.pos : colours.accent, width: 2 }, hovertemplate: "%{x} groups corrected: %{y:.1%}<extra>" + names[curve.order] + "</extra>",
    })), layout(colours, { height: 340, xaxis: axis(colours, "groups of concepts corrected", { dtick: curves[0].accuracy.length > 12 ? 5 : 1, zeroline: false }), yaxis: accuracyAxis(colours, "accuracy on " + data.held) })];
  },
  // Which concepts go together.
  correlation(_, colours) {
    const names = data.concepts.map((name) => plain(cut(name, narrow() ? 18 : 34)));
    return [[{
      type: "heatmap", z: data.correlation, x: names.map((_, k) => k), y: names.map((_, k) => k), zmin: -1, zmax: 1, xgap: 1, ygap: 1,
      colorscale: [[0, colours.neg], [0.5, colours.paper], [1, colours.pos]], colorbar: { thickness: 10, outlinewidth: 0 },
      text: data.correlation.map((row, a) => row.map((value, b) => plain(data.concepts[a]) + "<br>" + plain(data.concepts[b]) + "<br>" + value.toFixed(2))), hovertemplate: "%{text}<extra></extra>",
    }], layout(colours, {
      height: 150 + Math.max(300, 18 * names.length),
      xaxis: axis(colours, "", { showticklabels: false, showgrid: false, zeroline: false }),
      yaxis: axis(colours, "", { tickvals: names.map((_, k) => k), ticktext: names, autorange: "reversed", showgrid: false, zeroline: false }),
    })];
  },
};

const drawn = new Set();
function draw(place) {
  const [traces, look] = charts[place.dataset.chart](place, theme());
  Plotly.react(place, traces, look, { responsive: true, displaylogo: false, displayModeBar: false }).then(() => {
    if (place.dataset.chart === "map" && !drawn.has(place)) followPointer(place);
    drawn.add(place);
  });
}

function followPointer(place) {
  const tip = document.getElementById("tip");
  place.on("plotly_hover", (event) => {
    const point = event.points[0].customdata;
    const picture = data.points.picture[point];
    const image = document.createElement("i");
    if (picture >= 0) {
      const { source, side, columns } = data.sprite;
      const shown = 64;
      image.style.cssText = `width:${shown}px;height:${shown}px;background-size:${columns * shown}px auto;background-position:-${(picture % columns) * shown}px -${Math.floor(picture / columns) * shown}px`;
      image.style.backgroundImage = `url("${source}")`;
    }
    const text = document.createElement("span");
    const name = document.createElement("b");
    name.textContent = data.classes[data.points.label[point]];
    const chosen = document.getElementById("map-colour");
    const score = data.scores[Number(chosen.value)]?.[point];
    const facts = [data.points.key[point], data.points.split[point], score !== undefined && `${chosen.selectedOptions[0].text} ${signed(score)}`];
    text.append(name, ...facts.filter(Boolean).flatMap((fact) => [document.createElement("br"), fact]));
    tip.replaceChildren(...(picture >= 0 ? [image, text] : [text]));
    tip.style.display = "flex";
    const box = tip.getBoundingClientRect();
    const { clientX, clientY } = event.event;
    tip.style.left = Math.max(4, Math.min(clientX + 14, window.innerWidth - box.width - 4)) + "px";
    tip.style.top = Math.max(4, Math.min(clientY + 14, window.innerHeight - box.height - 4)) + "px";
  });
  place.on("plotly_unhover", () => (tip.style.display = "none"));
}

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting && !drawn.has(entry.target)) draw(entry.target);
}, { rootMargin: "300px" });
const places = document.querySelectorAll("[data-chart]");
places.forEach((place) => seen.observe(place));
document.getElementById("map-colour").addEventListener("change", () => draw(document.querySelector("[data-chart=map]")));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(draw));
addEventListener("beforeprint", () => places.forEach(draw));
