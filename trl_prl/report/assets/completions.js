// Completions: a list that draws only what is in view, filters, and one completion in full.

const ROW_HEIGHT = 58;

// A list of any length: rows outside the view do not exist. Also used for the problems of searches.
function virtualList(label, renderRow, onSelect) {
  const rows = h("div", { class: "rows" });
  const box = h("div", { class: "vlist", role: "listbox", tabindex: "0", "aria-label": label }, rows);
  let items = [];
  let selected = -1;
  let drawn = new Map();
  function draw() {
    const first = Math.max(0, Math.floor(box.scrollTop / ROW_HEIGHT) - 4);
    const end = Math.min(items.length, Math.ceil((box.scrollTop + box.clientHeight) / ROW_HEIGHT) + 4);
    const next = new Map();
    for (let index = first; index < end; index++) next.set(index, drawn.get(index) || make(index));
    for (const [index, element] of drawn) if (!next.has(index)) element.remove();
    for (const [index, element] of next) if (!drawn.has(index)) rows.append(element);
    drawn = next;
    box.setAttribute("aria-activedescendant", drawn.has(selected) ? drawn.get(selected).id : "");
  }
  function make(index) {
    const element = h("div", {
      class: "row", role: "option", id: `${label.toLowerCase()}-${index}`, "aria-selected": String(index === selected),
      "aria-posinset": String(index + 1), "aria-setsize": String(items.length), onclick: () => choose(index),
    }, renderRow(items[index]));
    element.style.transform = `translateY(${index * ROW_HEIGHT}px)`;
    return element;
  }
  function choose(index, scroll = true) {
    if (!items.length) return onSelect(null);
    const target = Math.max(0, Math.min(items.length - 1, index));
    if (drawn.has(selected)) drawn.get(selected).setAttribute("aria-selected", "false");
    selected = target;
    if (drawn.has(selected)) drawn.get(selected).setAttribute("aria-selected", "true");
    const top = selected * ROW_HEIGHT;
    if (scroll && top < box.scrollTop) box.scrollTop = top;
    if (scroll && top + ROW_HEIGHT > box.scrollTop + box.clientHeight) box.scrollTop = top + ROW_HEIGHT - box.clientHeight;
    draw();
    onSelect(items[selected]);
  }
  box.addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
  new ResizeObserver(draw).observe(box);
  box.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(box.clientHeight / ROW_HEIGHT) - 1);
    const target = { ArrowDown: selected + 1, ArrowUp: selected - 1, PageDown: selected + page, PageUp: selected - page, Home: 0, End: items.length - 1 }[event.key];
    if (target === undefined || event.target !== box) return;
    event.preventDefault();
    choose(target);
  });
  return {
    box,
    move: (step) => choose(selected + step),
    selectFirst: (test) => { const index = items.findIndex(test); if (index > 0) choose(index); },
    redraw: () => { rows.replaceChildren(); drawn = new Map(); draw(); },
    show(list) {
      const before = items[selected];
      items = list;
      rows.style.height = `${items.length * ROW_HEIGHT}px`;
      rows.replaceChildren();
      drawn = new Map();
      selected = Math.max(0, items.indexOf(before));
      if (items[selected] !== before) box.scrollTop = 0;
      draw();
      choose(selected, false);
    },
  };
}

// ---- what a completion is called, and whether it is right ----

const rewardNames = [...new Set(DATA.completions.flatMap((row) => Object.keys(row.rewards || {})))];
const filter = { text: "", outcome: "all", reward: rewardNames[0] || "", low: "", high: "", minLength: "", maxLength: "", run: "all", split: "all", end: "all", from: "", to: "", sort: "latest" };
const middles = {};

// Right is the upper half of the range that a reward has in this report: above 0.5 for 0 and 1, above 0 for -1 and 1.
function middle(name) {
  if (!(name in middles)) {
    const values = DATA.completions.map((row) => row.rewards && row.rewards[name]).filter(isNumber);
    const low = Math.min(...values.slice(0, 50000)), high = Math.max(...values.slice(0, 50000));
    middles[name] = low === high ? 0.5 : (low + high) / 2;
  }
  return middles[name];
}

const rewardOf = (row) => (row.rewards && isNumber(row.rewards[filter.reward]) ? row.rewards[filter.reward] : null);

function isRight(row) {
  if (typeof row.correct === "boolean") return row.correct;
  const reward = rewardOf(row);
  return reward === null ? null : reward > middle(filter.reward);
}

const mark = (right) => h("span", { class: `mark ${right === null ? "" : right ? "right" : "wrong"}`, role: "img", "aria-label": right === null ? "not judged" : right ? "right" : "wrong" }, right === null ? "?" : right ? "✓" : "✗");
const runLabel = (row) => row.label || (DATA.runs[row.run] ? DATA.runs[row.run].label : DATA.sources[row.source].label);
const textOf = (row) => row.steps.join("") || row.text || "";
const haystack = (row) => row.haystack || (row.haystack = `${DATA.prompts[row.prompt]}\n${textOf(row)}`.toLowerCase());

const SORTS = {
  latest: ["latest optimizer step first", (row) => -(row.step ?? -1)],
  order: ["as recorded", null],
  reward: ["reward, high first", (row) => -(rewardOf(row) ?? -Infinity)],
  long: ["length, long first", (row) => -(row.tokens ?? textOf(row).length)],
  worst: ["lowest step first", (row) => Math.min(Infinity, ...(numbers(row, display.measure) || []).filter(isNumber))],
  spread: ["largest spread of steps first", (row) => {
    const values = (numbers(row, display.measure) || []).filter(isNumber);
    return values.length ? Math.min(...values) - Math.max(...values) : 0;
  }],
};

function matches(row) {
  const inside = (value, low, high) => (low === "" || (value !== null && value >= Number(low))) && (high === "" || (value !== null && value <= Number(high)));
  return (filter.run === "all" || String(row.run) === filter.run)
    && (filter.split === "all" || row.split === filter.split)
    && (filter.end === "all" || String(row.finished) === filter.end)
    && (filter.outcome === "all" || isRight(row) === (filter.outcome === "right"))
    && ((filter.low === "" && filter.high === "") || inside(rewardOf(row), filter.low, filter.high))
    && inside(row.tokens ?? null, filter.minLength, filter.maxLength)
    && inside(row.step ?? null, filter.from, filter.to)
    && (!filter.text || haystack(row).includes(filter.text.toLowerCase()));
}

// ---- the section ----

let completionList = null;
let currentRow = null;

function renderRow(row) {
  const reward = rewardOf(row);
  return [
    mark(isRight(row)),
    h("div", null,
      h("div", { class: "line1" }, reward !== null && h("b", null, num(reward, 2)), h("span", null, runLabel(row)),
        isNumber(row.step) && h("span", null, `step ${row.step}`), row.split === "eval" && h("span", null, "eval"),
        isNumber(row.tokens) && h("span", null, plural(row.tokens, "token")), row.finished === false && h("span", { title: "reached the length limit" }, "✂ cut")),
      h("div", { class: "snippet" }, textOf(row).slice(0, 160).replace(/\n/g, " ⏎ "))),
    spark(numbers(row, display.measure) || [], scaleOf(display.measure)),
  ];
}

let openCharts = [];

function renderDetail(holder, row) {
  openCharts.forEach((chart) => chart.destroy());
  openCharts = [];
  currentRow = row;
  hideTip();
  if (!row) return replace(holder, h("p", { class: "notice" }, "No completion fits the filters."));
  openCharts = stepCharts(row);
  const same = byPrompt().get(row.prompt) || [];
  const chips = [
    [isNumber(row.step) && "optimizer step", row.step], ["split", row.split],
    ...Object.entries(row.rewards || {}).map(([name, value]) => [name, amount(value)]),
    [isNumber(row.outcome) && "outcome advantage", signed(row.outcome)], [isNumber(row.tokens) && "tokens", row.tokens], ["steps", integer.format(numSteps(row))],
    ["end", row.finished === undefined ? undefined : row.finished ? "finished" : "cut at the limit"], [isNumber(row.v0) && "value of the prompt", num(row.v0, 2)],
  ].filter(([name, value]) => name && value !== undefined && value !== null);
  replace(holder,
    h("div", { class: "chips" }, mark(isRight(row)), h("strong", null, runLabel(row)), chips.map(([name, value]) => h("span", { class: "chip" }, `${name} `, h("b", null, value)))),
    h("h3", null, "Prompt"), h("div", { class: "prompt", tabindex: "0" }, DATA.prompts[row.prompt]),
    h("div", { class: "bar" }, h("h3", null, "Completion"), same.length > 1 && document.getElementById("compare") && h("button", { type: "button", class: "plain", onclick: () => comparePrompt(row) }, `Compare ${integer.format(same.length)} completions of this prompt`)),
    renderSteps(row, (index) => openCharts.forEach((chart) => chart.mark(index))),
    openCharts.length ? h("div", { class: "mini" }, openCharts.map((chart) => chart.figure)) : null);
  holder.scrollTop = 0;
}

function field(label, name, type, apply, extra) {
  return h("label", { class: "field" }, h("span", null, label), h("input", { type, value: filter[name], oninput: (event) => { filter[name] = event.target.value; apply(); }, ...extra }));
}

function range(label, low, high, apply) {
  const input = (name, text) => h("input", { type: "number", step: "any", placeholder: text, "aria-label": `${label}, ${text === "min" ? "at least" : "at most"}`, oninput: (event) => { filter[name] = event.target.value; apply(); } });
  return h("span", { class: "field", role: "group", "aria-label": label }, h("span", null, label), h("span", { class: "range" }, input(low, "min"), "–", input(high, "max")));
}

SECTIONS.completions = {
  build(panel) {
    const detail = h("div", { class: "detail", role: "region", "aria-label": "Completion" });
    const count = h("span", { class: "notice", role: "status" });
    const list = virtualList("Completions", renderRow, (row) => renderDetail(detail, row));
    completionList = list;
    let waiting = 0;
    const apply = () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(now); };
    function now() {
      let rows = DATA.completions.filter(matches);
      const key = SORTS[filter.sort][1];
      if (key) rows = rows.map((row) => [key(row), row]).sort((a, b) => a[0] - b[0]).map(([, row]) => row);
      count.textContent = `${integer.format(rows.length)} of ${plural(DATA.completions.length, "completion")}`;
      list.show(rows);
    }
    const set = (name) => (value) => { filter[name] = value; apply(); };
    const runs = [["all", "all"], ...DATA.runs.map((run, index) => [String(index), run.label])];
    const has = (test) => DATA.completions.some(test);
    append(panel, [
      h("div", { class: "bar" },
        field("Search in texts  ( / )", "text", "search", apply, { id: "search-text", placeholder: "text in prompt or completion" }),
        h("span", { class: "field" }, h("span", null, "Outcome"), segmented("Outcome", [["all", "All"], ["right", "✓ Right"], ["wrong", "✗ Wrong"]], "all", set("outcome"))),
        rewardNames.length > 1 && select("Judge by", rewardNames.map((name) => [name, name]), filter.reward, (value) => { filter.reward = value; apply(); list.redraw(); }),
        rewardNames.length > 0 && [range("Reward", "low", "high", apply)],
        has((row) => isNumber(row.tokens)) && range("Tokens", "minLength", "maxLength", apply),
        has((row) => isNumber(row.step)) && range("Optimizer step", "from", "to", apply),
        runs.length > 2 && select("Run", runs, "all", set("run")),
        has((row) => row.split === "eval") && select("Split", [["all", "all"], ["train", "train"], ["eval", "eval"]], "all", set("split")),
        has((row) => row.finished === false) && select("End", [["all", "all"], ["true", "finished"], ["false", "cut at the limit"]], "all", set("end")),
        select("Sort", Object.entries(SORTS).map(([key, [text]]) => [key, text]), "latest", set("sort"))),
      h("div", { class: "bar" }, available.length ? measureControls(() => { list.redraw(); renderDetail(detail, currentRow); }) : null, count),
      h("div", { class: "split" }, list.box, detail),
    ]);
    now();
    list.selectFirst((row) => hasNumbers(row, display.measure));
  },
  move: (step) => completionList.move(step),
};
