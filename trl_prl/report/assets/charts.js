// Curves on uPlot: groups of runs with the spread over their seeds, read by pointer and by keyboard.

const CHARTS = new Set();
themeListeners.push(() => CHARTS.forEach((chart) => chart.redraw()));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => themeListeners.forEach((f) => f()));

function smooth(values, window) {
  if (window <= 1) return values;
  let sum = 0;
  const inside = [];
  return values.map((value) => {
    if (!isNumber(value)) return value;
    inside.push(value);
    sum += value;
    if (inside.length > window) sum -= inside.shift();
    return sum / inside.length;
  });
}

// Mean, lowest and highest over runs, at every x that any of them has.
function aggregate(runs, window) {
  const at = new Map();
  for (const [xs, ys] of runs) {
    smooth(ys, window).forEach((y, index) => {
      if (!isNumber(y)) return;
      if (!at.has(xs[index])) at.set(xs[index], []);
      at.get(xs[index]).push(y);
    });
  }
  const x = [...at.keys()].sort((a, b) => a - b);
  return {
    x,
    mean: x.map((key) => mean(at.get(key))),
    low: x.map((key) => Math.min(...at.get(key))),
    high: x.map((key) => Math.max(...at.get(key))),
  };
}

function axisStyle(extra) {
  return {
    stroke: () => css("--muted"),
    grid: { stroke: () => css("--grid"), width: 1 },
    ticks: { stroke: () => css("--grid"), width: 1, size: 4 },
    font: "11px system-ui, sans-serif",
    ...extra,
  };
}

// One chart of lines. `lines`: {label, index, x, mean, low?, high?, points?, dashed?}.
function lineChart(options, lines) {
  const xs = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const place = new Map(xs.map((x, index) => [x, index]));
  const spread = (x, values) => {
    const row = new Array(xs.length).fill(null);
    x.forEach((key, index) => (row[place.get(key)] = isNumber(values[index]) ? values[index] : null));
    return row;
  };
  const data = [xs];
  const series = [{}];
  const bands = [];
  lines.forEach((line) => {
    const color = () => groupColor(line.index);
    data.push(spread(line.x, line.mean));
    series.push({
      label: line.label, stroke: color, width: 2, dash: line.dash || groupDash(line.index), spanGaps: true,
      paths: line.bars ? uPlot.paths.bars({ size: [0.7, 60] }) : undefined, fill: line.bars ? () => groupColor(line.index) + "66" : undefined,
      points: { show: !line.bars && (Boolean(line.points) || line.x.length < 3), size: 7, fill: color, stroke: color },
    });
    if (line.low) {
      data.push(spread(line.x, line.low), spread(line.x, line.high));
      const hidden = { stroke: "transparent", width: 0, points: { show: false }, spanGaps: true };
      series.push(hidden, hidden);
      bands.push({ series: [series.length - 1, series.length - 2], fill: () => groupColor(line.index) + "2e" });
    }
  });

  const readout = h("p", { class: "readout", "aria-live": "off" });
  const holder = h("div", { class: "plot" });
  const figure = h(
    "figure",
    { class: "chart", tabindex: "0", "aria-label": describe(options, lines) },
    h("figcaption", null, h("strong", null, options.title), options.hint && h("span", { class: "hint" }, options.hint), options.mark && h("span", { class: "hint healthy" }, options.mark)),
    readout,
    holder,
  );
  const format = options.format || num;
  const idle = () => replace(readout, options.legend === false ? "\u00a0" : lines.map((line) =>
    h("span", { class: "key" }, swatch(line.index), line.label, " ", options.ends !== false && h("b", null, format(last(line.mean))))));

  function read(index) {
    if (index === null || index === undefined) return idle();
    replace(readout, h("span", { class: "at" }, `${options.xName || "optimizer step"} ${num(xs[index])}`),
      lines.map((line) => {
        const at = line.x.indexOf(xs[index]);
        const range = at >= 0 && line.low && line.low[at] !== line.high[at]
          ? ` (${format(line.low[at])} to ${format(line.high[at])})` : "";
        return h("span", { class: "key" }, swatch(line.index), line.label, " ",
          h("b", null, at >= 0 ? format(line.mean[at]) : "–"), range);
      }));
  }

  let plot = null;
  let cursor = -1;
  const height = options.height || 190;
  function draw() {
    const width = holder.clientWidth;
    if (!width || !xs.length) return;
    if (plot) return plot.setSize({ width, height });
    plot = new uPlot(
      {
        width, height, legend: { show: false }, padding: [8, 10, 0, 0], bands,
        cursor: {
          sync: options.sync ? { key: options.sync } : undefined,
          drag: { x: options.zoom !== false, y: false }, points: { size: 7 }, y: false,
        },
        scales: { x: { time: false, ...(options.xRange && { range: () => options.xRange }) },
          y: { range: options.yRange ? () => options.yRange : options.zero ? (u, low, high) => padded(u, Math.min(0, low), Math.max(0, high)) : padded } },
        axes: [axisStyle({ size: 28, ...(xs.every(Number.isInteger) && { incrs: WHOLE }), ...options.xAxis }), axisStyle({ size: 48, values: (u, ticks) => ticks.map((v) => tickText(v, ticks)) })],
        series,
        hooks: { setCursor: [(u) => read(u.cursor.idx)], ...(options.healthy && { drawClear: [healthyBand(options.healthy)] }), ...(options.zero && { drawAxes: [zeroLine] }) },
      },
      data,
      holder,
    );
  }
  figure.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !plot) return;
    event.preventDefault();
    cursor = Math.max(0, Math.min(xs.length - 1, cursor < 0 ? (step > 0 ? 0 : xs.length - 1) : cursor + step));
    readout.setAttribute("aria-live", "polite");
    plot.setCursor({ left: plot.valToPos(xs[cursor], "x"), top: 10 });
    read(cursor);
  });
  figure.addEventListener("focusout", () => { cursor = -1; readout.setAttribute("aria-live", "off"); idle(); });
  // Drawn when they come into view: a run has dozens of metrics.
  const watcher = new IntersectionObserver((seen) => seen.some((entry) => entry.isIntersecting) && draw(), { rootMargin: "400px" });
  watcher.observe(holder);
  const sizes = new ResizeObserver(() => plot && draw());
  sizes.observe(holder);
  const chart = {
    figure,
    redraw: () => plot && plot.redraw(false, true),
    mark: (index) => plot && plot.setCursor({ left: index === null ? -10 : plot.valToPos(xs[index], "x"), top: 10 }),
    destroy: () => { watcher.disconnect(); sizes.disconnect(); if (plot) plot.destroy(); CHARTS.delete(chart); },
  };
  CHARTS.add(chart);
  idle();
  return chart;
}

// Behind the curves, the part of the axis that is healthy; it does not widen the axis.
const healthyBand = ([low, high]) => (u) => {
  const y = (value, edge) => (value === null ? edge : u.valToPos(value, "y", true));
  const top = Math.max(u.bbox.top, y(high, u.bbox.top));
  const bottom = Math.min(u.bbox.top + u.bbox.height, y(low, u.bbox.top + u.bbox.height));
  if (bottom <= top) return;
  u.ctx.save();
  u.ctx.fillStyle = css("--healthy");
  u.ctx.fillRect(u.bbox.left, top, u.bbox.width, bottom - top);
  u.ctx.restore();
};

function zeroLine(u) {
  const y = Math.round(u.valToPos(0, "y", true)) + 0.5;
  u.ctx.save();
  u.ctx.strokeStyle = css("--muted");
  u.ctx.lineWidth = 1;
  u.ctx.beginPath();
  u.ctx.moveTo(u.bbox.left, y);
  u.ctx.lineTo(u.bbox.left + u.bbox.width, y);
  u.ctx.stroke();
  u.ctx.restore();
}

// Distances of ticks where x counts something.
const WHOLE = [0, 1, 2, 3, 4, 5, 6].flatMap((power) => [1, 2, 5].map((digit) => digit * 10 ** power));

// A margin around the values; a constant gets one too, so that its line is not an axis.
function padded(u, low, high) {
  if (low === null || high === null) return [0, 1];
  if (low === high) return [low - Math.max(0.5, Math.abs(low) * 0.1), high + Math.max(0.5, Math.abs(high) * 0.1)];
  return uPlot.rangeNum(low, high, 0.08, true);
}

const last = (values) => values.filter(isNumber).at(-1);

function tickText(value, ticks) {
  if (value === null) return "";
  const size = Math.max(...ticks.map(Math.abs));
  if (size >= 1e4 || (size < 0.001 && size > 0)) return value.toExponential(0);
  const isExact = (digits) => ticks.every((tick) => Math.abs(tick - Number(tick.toFixed(digits))) < 1e-9 * (size || 1));
  const digits = [0, 1, 2, 3].find(isExact) ?? 4;
  return value.toFixed(digits).replace("-", "−");
}

function describe(options, lines) {
  const ends = lines.map((line) => `${line.label} ends at ${num(last(line.mean))}`).join("; ");
  return `${options.title}. ${ends}. Arrow keys read the values.`;
}
