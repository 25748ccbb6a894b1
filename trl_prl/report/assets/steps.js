// The steps of one completion: coloured by a number, read by pointer and by keyboard, with curves below.

const MEASURES = {
  adv: ["Advantage", "advantage in force at the end of the step: outcome part and process part", "signed"],
  rew: ["Process reward", "progress for PAV, process part of the advantage for PRL", "signed"],
  val: ["Value", "probability of success after the step, as the verifier or the rollouts have it", "share"],
  lab: ["Label", "label of the step in the data set", "share"],
  cum: ["Progress so far", "sum of the progress up to the step: the value, less that of the prompt", "signed"],
  kl: ["KL-to-go", "log-ratio to the reference from the step to the end, in nats", "signed"],
};
const hasNumbers = (row, key) => (numbers(row, key) || []).some(isNumber);
const available = Object.keys(MEASURES).filter((key) => DATA.completions.some((row) => hasNumbers(row, key)));
const display = { measure: available.includes("rew") ? "rew" : available[0] || "adv", layout: "auto" };
const displayListeners = [];

function numbers(row, key) {
  if (key !== "cum") return row[key] || null;
  if (!row.rew || row.kl) return null;
  if (!row.cumulated) {
    let sum = 0;
    row.cumulated = row.rew.map((value) => (isNumber(value) ? (sum += value) : null));
  }
  return row.cumulated;
}

// Colours are full at a size that few steps exceed, the same in all completions.
const scales = {};
function scaleOf(key) {
  if (!(key in scales)) {
    const some = DATA.completions.length > 400
      ? DATA.completions.filter((_, index) => index % Math.ceil(DATA.completions.length / 400) === 0) : DATA.completions;
    scales[key] = MEASURES[key][2] === "share" ? 1
      : quantile(some.flatMap((row) => numbers(row, key) || []).filter(isNumber).map(Math.abs), 0.95) || 1;
  }
  return scales[key];
}

const showNumber = (key, value) => (MEASURES[key][2] === "share" ? num(value, 2) : signed(value));

function stepClass(key, value) {
  if (!isNumber(value)) return "step none";
  if (MEASURES[key][2] === "share") return "step seq";
  return value < 0 ? "step neg" : value > 0 ? "step pos" : "step zero";
}

// Of a long completion the middle is left out; one entry stands for it.
function stepNumber(row, index) {
  if (!row.skipped || index < row.skipped[0]) return String(index + 1);
  return index === row.skipped[0] ? "…" : String(index + row.skipped[1]);
}

const numSteps = (row) => row.steps.length + (row.skipped ? row.skipped[1] - 1 : 0);

function tipOf(row, index) {
  const lines = Object.keys(MEASURES).filter((key) => numbers(row, key)).map((key) => [
    h("dt", null, MEASURES[key][0]), h("dd", null, showNumber(key, numbers(row, key)[index])),
  ]);
  if (row.low && isNumber(row.low[index])) {
    lines.push([h("dt", null, "Interval"), h("dd", null, `${num(row.low[index], 2)} to ${num(row.high[index], 2)}`)]);
  }
  if (row.rollouts && isNumber(row.rollouts[index])) {
    lines.push([h("dt", null, "Rollouts"), h("dd", null, num(row.rollouts[index]))]);
  }
  return [h("strong", null, `Step ${stepNumber(row, index)} of ${integer.format(numSteps(row))}`), h("dl", null, lines)];
}

function layoutOf(row) {
  if (display.layout !== "auto") return display.layout;
  const characters = row.steps.reduce((sum, text) => sum + text.length, 0);
  const broken = row.steps.slice(0, -1).filter((text) => text.endsWith("\n")).length;
  return broken >= (row.steps.length - 1) / 2 || characters / Math.max(1, row.steps.length) > 40 ? "rows" : "inline";
}

// The steps as a list in which one step at a time can be reached by Tab, the others by arrows.
function renderSteps(row, onMark) {
  if (!row.steps.length) {
    return h("div", { class: "stack" }, h("p", { class: "notice" }, "No steps: the whole completion is masked."),
      h("div", { class: "prompt" }, row.text || ""));
  }
  const key = hasNumbers(row, display.measure) ? display.measure : available.find((name) => hasNumbers(row, name));
  const values = (key && numbers(row, key)) || [];
  const scale = key ? scaleOf(key) : 1;
  const layout = layoutOf(row);
  const items = row.steps.map((text, index) => {
    const value = values[index];
    const label = key ? `Step ${stepNumber(row, index)}, ${MEASURES[key][0].toLowerCase()} ${showNumber(key, value)}: ${text}` : text;
    return h(layout === "rows" ? "div" : "span",
      { class: key ? stepClass(key, value) : "step", role: "listitem", tabindex: index ? "-1" : "0", "aria-label": label,
        "data-step": String(index), "--m": isNumber(value) ? Math.min(1, Math.abs(value) / scale).toFixed(3) : "0" },
      h("span", { class: "index" }, stepNumber(row, index)),
      h("span", { class: "score" }, key ? showNumber(key, value) : ""),
      h("span", { class: "text" }, layout === "rows" ? text.replace(/\n$/, "") || "⏎" : text));
  });
  const list = h("div", { class: `steps ${layout}`, role: "list", "aria-label": `${plural(numSteps(row), "step")}; arrow keys move between them` }, items);
  const at = (target) => target.closest && target.closest("[data-step]");
  function mark(item) {
    const index = Number(item.dataset.step);
    for (const other of list.querySelectorAll(".marked")) other.classList.remove("marked");
    item.classList.add("marked");
    showTip(item, tipOf(row, index));
    if (onMark) onMark(index);
  }
  function unmark() {
    for (const other of list.querySelectorAll(".marked")) other.classList.remove("marked");
    hideTip();
    if (onMark) onMark(null);
  }
  list.addEventListener("mouseover", (event) => at(event.target) && mark(at(event.target)));
  list.addEventListener("mouseleave", unmark);
  list.addEventListener("focusin", (event) => at(event.target) && mark(at(event.target)));
  list.addEventListener("focusout", unmark);
  list.addEventListener("keydown", (event) => {
    const index = items.indexOf(at(event.target));
    const step = { ArrowRight: index + 1, ArrowDown: index + 1, ArrowLeft: index - 1, ArrowUp: index - 1, Home: 0, End: items.length - 1 }[event.key];
    if (event.key === "Escape") hideTip();
    if (step === undefined || !items[step]) return;
    event.preventDefault();
    items.forEach((item, other) => (item.tabIndex = other === step ? 0 : -1));
    items[step].focus();
  });
  return list;
}

// Advantages, values and KL-to-go over the steps, each in a small chart.
function stepCharts(row) {
  const xs = row.steps.map((_, index) => index + 1);
  return Object.keys(MEASURES).filter((key) => hasNumbers(row, key) && row.steps.length > 1).map((key, index) => {
    const line = { label: MEASURES[key][0], index: { adv: 0, rew: 2, val: 3, lab: 5, cum: 3, kl: 1 }[key], x: xs, mean: numbers(row, key), points: true };
    if (key === "val" && row.low) Object.assign(line, { low: row.low, high: row.high });
    return lineChart({
      title: MEASURES[key][0], hint: key === "val" && isNumber(row.v0) ? `prompt: ${num(row.v0, 2)}` : "", height: 120,
      legend: false, sync: "steps", xName: "step", zoom: false,
      format: (value) => showNumber(key, value), yRange: MEASURES[key][2] === "share" ? [0, 1] : undefined, zero: MEASURES[key][2] !== "share",
      xRange: [0.5, row.steps.length + 0.5],
      xAxis: { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000], space: 28 },
    }, [line]);
  });
}

function measureControls(onchange) {
  const refresh = () => { for (const listener of displayListeners) listener(); onchange(); };
  const scale = h("span", { class: "scale" });
  function showScale() {
    const key = display.measure;
    const share = MEASURES[key][2] === "share";
    scale.className = share ? "scale seq" : "scale";
    scale.title = MEASURES[key][1];
    replace(scale, share ? "0" : signed(-scaleOf(key)), h("i", { "aria-hidden": "true" }), share ? "1" : signed(scaleOf(key)));
  }
  showScale();
  displayListeners.push(showScale);
  return [
    h("span", { class: "field" }, h("span", null, "Colour by"),
      segmented("Colour by", available.map((key) => [key, MEASURES[key][0], MEASURES[key][1]]), display.measure, (key) => { display.measure = key; refresh(); })),
    h("span", { class: "field" }, h("span", null, "Layout"),
      segmented("Layout of steps", [["auto", "Auto"], ["rows", "Rows"], ["inline", "Text"]], display.layout, (key) => { display.layout = key; refresh(); })),
    scale,
  ];
}

// Bars up and down: the steps of a completion at a glance, without reading colours.
function spark(values, scale) {
  const width = 92, height = 30, middle = height / 2;
  const step = Math.min(9, width / Math.max(1, values.length));
  let up = "", down = "";
  values.forEach((value, index) => {
    if (!value || !isNumber(value)) return;
    const size = Math.max(0.8, (Math.min(1, Math.abs(value) / scale) * (height - 4)) / 2);
    const x = (index * step).toFixed(1), w = Math.max(0.6, step - 1).toFixed(1);
    if (value < 0) down += `M${x} ${middle}h${w}v${size.toFixed(1)}h-${w}z`;
    else up += `M${x} ${middle}h${w}v-${size.toFixed(1)}h-${w}z`;
  });
  return svg("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    svg("path", { class: "z", d: `M0 ${middle}H${width}` }), svg("path", { class: "p", d: up }), svg("path", { class: "n", d: down }));
}
