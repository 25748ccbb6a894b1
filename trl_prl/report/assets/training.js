// Overview and training curves.

const hiddenGroups = new Set();
const training = { window: 1, filter: "" };

function groupLines(name, split, window) {
  return DATA.groups.map((group, index) => {
    const runs = group.runs.map((run) => (DATA.runs[run].metrics[split] || {})[name]).filter(Boolean);
    if (!runs.length || hiddenGroups.has(index)) return null;
    const { x, mean: middleLine, low, high } = aggregate(runs, window);
    const line = { label: group.label, index, x, mean: middleLine };
    return runs.length > 1 ? { ...line, low, high } : line;
  }).filter((line) => line && line.x.length);
}

function metricNames(split) {
  const names = new Set(DATA.runs.flatMap((run) => Object.keys(run.metrics[split] || {})));
  const known = Object.keys(DATA.metricInfo).filter((name) => names.has(name));
  return [...known, ...[...names].filter((name) => !(name in DATA.metricInfo)).sort()];
}

const metricTitle = (name) => (DATA.metricInfo[name] ? DATA.metricInfo[name][0] : name);
const metricHint = (name) => (DATA.metricInfo[name] ? DATA.metricInfo[name][1] : "");
const healthyText = ([low, high]) => (low === null ? `below ${high}` : high === null ? `above ${low}` : `${low} to ${high}`);

function metricChart(name, split) {
  const lines = groupLines(name, split, split === "eval" ? 1 : training.window);
  return lines.length ? lineChart({ title: metricTitle(name) + (split === "eval" ? ", evaluation" : ""), hint: metricHint(name), sync: `training-${split}`, healthy: DATA.healthy[name], mark: DATA.healthy[name] && `healthy: ${healthyText(DATA.healthy[name])}` }, lines).figure : null;
}

function lastOf(group, name, split) {
  const values = group.runs.map((run) => (DATA.runs[run].metrics[split] || {})[name]).filter(Boolean)
    .map(([, ys]) => mean(ys.filter(isNumber).slice(split === "eval" ? -1 : -Math.max(1, Math.ceil(ys.length / 10))))).filter(isNumber);
  if (!values.length) return "–";
  const low = Math.min(...values), high = Math.max(...values);
  return values.length > 1 ? `${num(mean(values))} (${num(low)} to ${num(high)})` : num(values[0]);
}

function runTable() {
  const columns = [["reward", "train", "reward, last tenth"], ["reward", "eval", "evaluation reward, last"], ["process/advantage_share", "train", "process share"],
    ["process/kl_to_go", "train", "KL-to-go, nats"], ["completions/mean_length", "train", "tokens per completion"]]
    .filter(([name, split]) => DATA.runs.some((run) => (run.metrics[split] || {})[name]));
  const sameModel = new Set(DATA.groups.map((group) => group.model)).size === 1;
  const anySettings = DATA.groups.some((group) => group.settings);
  return table(["run", "method", anySettings && "settings", !sameModel && "model", "seeds", "optimizer steps", ...columns.map(([, , label]) => label)].filter(Boolean), DATA.groups.map((group, index) => [
    h("span", { class: "key" }, swatch(index), group.label), group.method, anySettings && (group.settings || "–"), !sameModel && (group.model || "–"), String(group.runs.length), amount(group.steps), ...columns.map(([name, split]) => lastOf(group, name, split)),
  ].filter((cell) => cell !== false)), `${sameModel && DATA.groups[0].model ? `Policy: ${DATA.groups[0].model}. ` : ""}Mean over seeds, from the lowest to the highest in parentheses`);
}

// What training changed and which search is best, in large.
function headlineCards() {
  const share = (found) => [found.before, found.after].every((e) => !e || (isNumber(e.value) && e.value >= 0 && e.value <= 1));
  return DATA.headlines.map((line) => {
    const show = share(line) ? (value) => percent(value) : (value) => num(value);
    const interval = (found) => (found && isNumber(found.low) && isNumber(found.high) && found.low !== found.high ? `${show(found.low)} to ${show(found.high)}` : null);
    const change = line.difference && isNumber(line.difference.value) ? line.difference : null;
    const points = (value) => (share(line) ? `${signed(100 * value, 1)} points` : signed(value));
    return h("div", { class: "tile headline" }, h("span", null, line.title),
      h("b", null, line.before && [h("i", null, show(line.before.value)), " → "], show(line.after.value)),
      h("span", null, [line.before && interval(line.before) && `before: ${interval(line.before)}`, interval(line.after) && `${line.before ? "after: " : ""}${interval(line.after)}`,
        change && `difference: ${points(change.value)}${isNumber(change.low) ? ` (${points(change.low)} to ${points(change.high)})` : ""}`, line.note].filter(Boolean).join("; ")));
  });
}

function runWarnings() {
  return DATA.runs.flatMap((run) => run.warnings.map(([, text]) => h("p", { class: "warning", role: "note" }, h("b", null, run.label), ": ", text)));
}

SECTIONS.overview = {
  build(panel) {
    const tiles = [[DATA.runs.length, "training runs"], [DATA.completions.length, "completions"], [DATA.searches.reduce((sum, search) => sum + search.problems.length, 0), "searched problems"],
      [DATA.verifiers.length, "verifier evaluations"], [DATA.diagnoses.length, "prover diagnoses"], [DATA.evaluations.length, "evaluations"]].filter(([count]) => count);
    append(panel, h("div", { class: "stack" },
      DATA.headlines.length ? h("div", { class: "tiles headlines" }, headlineCards()) : null,
      [...DATA.warnings.map((text) => h("p", { class: "warning", role: "note" }, text)), ...runWarnings()],
      h("div", { class: "tiles" }, tiles.map(([count, label]) => h("div", { class: "tile" }, h("b", null, integer.format(count)), h("span", null, count === 1 ? label.replace(/(ions?|runs|problems|diagnoses)$/, (word) => ({ runs: "run", problems: "problem", diagnoses: "diagnosis" })[word] || word.replace(/s$/, "")) : label)))),
      DATA.groups.length ? h("div", { class: "card" }, h("h2", null, "Runs"), runTable()) : null,
      DATA.groups.length ? h("div", { class: "charts wide" }, [["reward", "train"], ["reward", "eval"]].map(([name, split]) => overviewChart(name, split))) : null,
      h("div", { class: "card" }, h("h2", null, "What was read"), table(["source", "what it is", "contents"], DATA.sources.map((source) => [source.label, source.kind, source.note])))));
  },
};

function overviewChart(name, split) {
  const longest = Math.max(0, ...DATA.runs.map((run) => (((run.metrics[split] || {})[name] || [[]])[0].length)));
  const lines = groupLines(name, split, split === "eval" ? 1 : Math.max(1, Math.round(longest / 25)));
  const hint = lines.some((line) => line.low) ? "mean over seeds, band from lowest to highest" : "";
  return lines.length ? lineChart({ title: split === "eval" ? "Evaluation reward" : "Reward in training, smoothed", hint, height: 250, sync: `overview-${split}` }, lines).figure : null;
}

SECTIONS.training = {
  build(panel) {
    const holder = h("div", { class: "stack" });
    const status = h("output", null, "1");
    function draw() {
      for (const chart of [...CHARTS]) if (holder.contains(chart.figure)) chart.destroy();
      const wanted = training.filter.toLowerCase();
      const charts = (split, names) => {
        const figures = names.filter((name) => !wanted || `${name} ${metricTitle(name)}`.toLowerCase().includes(wanted)).map((name) => metricChart(name, split)).filter(Boolean);
        return figures.length ? h("div", { class: "charts" }, figures) : null;
      };
      const names = metricNames("train");
      const main = names.filter((name) => name in DATA.metricInfo);
      const others = names.filter((name) => !(name in DATA.metricInfo));
      const evaluated = metricNames("eval").filter((name) => wanted || name in DATA.metricInfo);
      replace(holder, charts("train", main), evaluated.length ? [h("h2", null, "Evaluation"), charts("eval", evaluated)] : null,
        others.length ? h("details", { open: Boolean(wanted) }, h("summary", null, `${plural(others.length, "further metric")} in training`), charts("train", others)) : null);
    }
    const buttons = DATA.groups.map((group, index) => h("button", { type: "button", class: "plain toggle key", "aria-pressed": "true", onclick: (event) => {
      const button = event.currentTarget;
      const hide = !hiddenGroups.has(index);
      hiddenGroups[hide ? "add" : "delete"](index);
      button.setAttribute("aria-pressed", String(!hide));
      draw();
    } }, swatch(index), group.label, group.runs.length > 1 ? ` (${group.runs.length} seeds)` : ""));
    append(panel, [
      runWarnings(),
      h("div", { class: "bar" },
        h("div", { class: "bar", role: "group", "aria-label": "Shown runs", style: "margin:0" }, buttons),
        h("label", { class: "field" }, h("span", null, "Moving average over ", status, " log entries"), h("input", { type: "range", min: "1", max: "50", value: "1", oninput: (event) => { training.window = Number(event.target.value); status.textContent = event.target.value; }, onchange: draw })),
        h("label", { class: "field" }, h("span", null, "Metrics"), h("input", { type: "search", id: "search-metrics", placeholder: "part of a name", oninput: (event) => { training.filter = event.target.value; draw(); } })),
      ),
      note(DATA.groups.some((group) => group.runs.length > 1) ? "Lines are means over seeds, bands go from the lowest to the highest seed. Point, or focus a chart and use the arrow keys, to read values; drag to zoom, double-click to zoom out." : "Point, or focus a chart and use the arrow keys, to read values; drag to zoom, double-click to zoom out."),
      holder,
    ]);
    draw();
  },
};
