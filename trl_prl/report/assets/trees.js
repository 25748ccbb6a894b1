// Searches: accuracy against compute, and the tree of each problem: what was kept, what was pruned, and why.

const SIGNS = { pruned: "✕", finished: "✓", chosen: "★", kept: "●", open: "○", unfinished: "…", duplicate: "=" };

// The status as a class; others than the known ones are shown by their own name.
function statusOf(node, chosen) {
  if (chosen.has(node.id)) return "chosen";
  const status = String(node.status || "open").toLowerCase();
  if (status.startsWith("prun") || status === "dropped" || status === "rejected") return "pruned";
  if (status.startsWith("finish") || status === "ended") return "finished";
  return status in SIGNS ? status : "kept";
}

// Ids on the way from the root to the answer.
function chosenPath(problem, byId) {
  const path = new Set();
  const candidate = problem.candidates[problem.chosen];
  let node = problem.nodes.find((other) => other.status === "chosen");
  if (!node && candidate) {
    node = problem.nodes.find((other) => textTo(other, byId) === candidate.text);
  }
  const leaf = node ? node.id : null;
  for (let at = node, guard = 0; at && guard < 10000; at = byId.get(at.parent), guard++) path.add(at.id);
  return [path, leaf];
}

function textTo(node, byId) {
  const parts = [];
  for (let at = node, guard = 0; at && guard < 10000; at = byId.get(at.parent), guard++) parts.push(at.text);
  return parts.reverse().join("");
}

// Depth from left to right, leaves one below the other.
function placeNodes(nodes, byId) {
  const children = new Map();
  const roots = [];
  for (const node of nodes) {
    if (byId.has(node.parent) && node.parent !== node.id) {
      if (!children.has(node.parent)) children.set(node.parent, []);
      children.get(node.parent).push(node);
    } else roots.push(node);
  }
  const places = new Map();
  let row = 0;
  const stack = roots.slice().reverse().map((node) => [node, 0, false]);
  while (stack.length) {
    const [node, depth, visited] = stack.pop();
    const below = children.get(node.id) || [];
    if (!visited && below.length) {
      stack.push([node, depth, true], ...below.slice().reverse().map((child) => [child, depth + 1, false]));
    } else {
      const y = below.length ? mean([places.get(below[0].id).y, places.get(below.at(-1).id).y]) : row++;
      places.set(node.id, { depth, y });
    }
  }
  return { places, rows: row, depth: Math.max(0, ...[...places.values()].map((place) => place.depth)) };
}

function drawTree(problem, show) {
  const byId = new Map(problem.nodes.map((node) => [node.id, node]));
  const [path, leaf] = chosenPath(problem, byId);
  const chosen = new Set(leaf === null ? [] : [leaf]);
  const { places, rows, depth } = placeNodes(problem.nodes, byId);
  const dx = Math.max(56, Math.min(120, 900 / (depth + 1))), dy = 28, r = 10;
  const at = (node) => ({ x: 24 + places.get(node.id).depth * dx, y: 20 + places.get(node.id).y * dy });
  const canvas = svg("svg", { width: 48 + depth * dx, height: 40 + Math.max(0, rows - 1) * dy, role: "group", "aria-label": `Search tree of ${problem.nodes.length} steps; arrow keys move between them` });
  for (const node of problem.nodes) {
    const parent = byId.get(node.parent);
    if (!parent || parent === node) continue;
    const from = at(parent), to = at(node), half = (from.x + to.x) / 2;
    canvas.append(svg("path", { class: `edge ${statusOf(node, chosen)} ${path.has(node.id) ? "path" : ""}`, d: `M${from.x} ${from.y}C${half} ${from.y} ${half} ${to.y} ${to.x} ${to.y}` }));
  }
  const elements = new Map();
  for (const node of problem.nodes) {
    const { x, y } = at(node);
    const status = statusOf(node, chosen);
    const value = isNumber(node.q) ? Math.max(0, Math.min(1, node.q)) : 0;
    const circle = svg("circle", { cx: x, cy: y, r });
    circle.style.fill = `color-mix(in oklab, var(--seq) ${Math.round(value * 70)}%, var(--card))`;
    const element = svg("g", { class: `node ${status}`, tabindex: "-1", role: "img", "aria-label": `${status}, value ${num(node.q, 2)}, score ${num(node.score, 2)}: ${node.text}` }, circle, svg("text", { x, y }, SIGNS[status]));
    element.addEventListener("click", () => element.focus());
    element.addEventListener("focus", () => { mark(element); show(node, status, byId); });
    element.addEventListener("mouseenter", () => showTip(element, nodeTip(node, status)));
    element.addEventListener("mouseleave", hideTip);
    elements.set(node.id, element);
    canvas.append(element);
  }
  function mark(element) {
    for (const other of canvas.querySelectorAll(".current")) other.classList.remove("current");
    element.classList.add("current");
    for (const other of elements.values()) other.setAttribute("tabindex", other === element ? "0" : "-1");
  }
  canvas.addEventListener("keydown", (event) => {
    const [id] = [...elements].find(([, element]) => element === document.activeElement) || [];
    if (id === undefined) return;
    const node = byId.get(id), place = places.get(id);
    const column = problem.nodes.filter((other) => places.get(other.id).depth === place.depth).sort((a, b) => places.get(a.id).y - places.get(b.id).y);
    const below = problem.nodes.filter((other) => other.parent === id && other !== node);
    const next = { ArrowLeft: byId.get(node.parent), ArrowRight: below.find((other) => path.has(other.id)) || below[0], ArrowUp: column[column.indexOf(node) - 1], ArrowDown: column[column.indexOf(node) + 1] }[event.key];
    if (!next) return;
    event.preventDefault();
    elements.get(next.id).focus();
  });
  const start = leaf !== null ? leaf : problem.nodes[0] && problem.nodes[0].id;
  if (start !== undefined && elements.has(start)) {
    mark(elements.get(start));
    show(byId.get(start), statusOf(byId.get(start), chosen), byId);
  }
  return canvas;
}

function nodeTip(node, status) {
  return [h("strong", null, `${SIGNS[status]} ${node.status || status}`), h("dl", null, [["Value Q", num(node.q, 3)], ["Progress A", signed(node.a)], ["Score", num(node.score, 3)]].map(([name, value]) => [h("dt", null, name), h("dd", null, value)])),
    node.reason && h("div", null, node.reason), h("div", { class: "snippet" }, node.text.slice(0, 120))];
}

function nodeDetail(holder, node, status, byId) {
  const line = [];
  for (let at = node, guard = 0; at && guard < 10000; at = byId.get(at.parent), guard++) line.unshift(at);
  const steps = line.filter((other) => other.text || other === node);
  replace(holder, h("div", { class: "chips" }, h("span", { class: `badge ${status}` }, `${SIGNS[status]} ${node.status || status}`),
    h("span", { class: "chip" }, "Q ", h("b", null, num(node.q, 3))), h("span", { class: "chip" }, "A ", h("b", null, signed(node.a, 3))), h("span", { class: "chip" }, "score ", h("b", null, num(node.score, 3))),
    isNumber(node.count) && node.count > 1 && h("span", { class: "chip" }, `${node.count} equal samples`)),
    h("p", null, node.reason ? `Why: ${node.reason}` : ""),
    h("div", { class: "steps rows" }, steps.map((step, index) => h("div", { class: stepClass("val", step.q), "--m": isNumber(step.q) ? String(Math.max(0, Math.min(1, step.q))) : "0" },
      h("span", { class: "index" }, index + 1), h("span", { class: "score" }, num(step.q, 2)), h("span", { class: "text" }, step.text.replace(/\n$/, "") || "⏎")))));
}

let searchList = null;

SECTIONS.search = {
  build(panel) {
    const all = DATA.searches.flatMap((search) => search.problems.map((problem) => ({ ...problem, search: isNumber(problem.n) ? `${search.label}, n = ${problem.n}` : search.label })))
      .sort((a, b) => Number(b.nodes.length > 0) - Number(a.nodes.length > 0) || (b.n ?? 0) - (a.n ?? 0));
    const points = DATA.searches.flatMap((search) => search.points);
    if (points.length) append(panel, [searchCurves(points)]);
    if (!all.length) return;
    const detail = h("div", { class: "detail", role: "region", "aria-label": "Search of a problem" });
    const list = virtualList("Problems", (problem) => [
      mark(problem.correct),
      h("div", null, h("div", { class: "line1" }, h("b", null, problem.search), problem.nodes.length ? h("span", null, plural(problem.nodes.length, "step")) : null, isNumber(problem.cost.num_generated_tokens) && h("span", null, `${num(problem.cost.num_generated_tokens)} tokens`)),
        h("div", { class: "snippet" }, problem.prompt.replace(/\s+/g, " ").slice(0, 140))),
      spark(problem.candidates.map((candidate) => candidate.score).filter(isNumber), 1),
    ], (problem) => showProblem(detail, problem));
    searchList = list;
    const state = { text: "", outcome: "all" };
    const apply = () => list.show(all.filter((problem) => (state.outcome === "all" || problem.correct === (state.outcome === "right")) && (!state.text || `${problem.prompt} ${problem.candidates.map((c) => c.text).join(" ")}`.toLowerCase().includes(state.text.toLowerCase()))));
    append(panel, [
      h("div", { class: "bar" }, h("label", { class: "field" }, h("span", null, "Search in texts  ( / )"), h("input", { type: "search", id: "search-problems", oninput: (event) => { state.text = event.target.value; apply(); } })),
        h("span", { class: "field" }, h("span", null, "Outcome"), segmented("Outcome", [["all", "All"], ["right", "✓ Right"], ["wrong", "✗ Wrong"]], "all", (value) => { state.outcome = value; apply(); })),
        note(Object.entries(SIGNS).filter(([name]) => name !== "duplicate").map(([name, sign]) => `${sign} ${name}`).join("   "))),
      h("div", { class: "split" }, list.box, detail),
    ]);
    apply();
  },
  move: (step) => searchList && searchList.move(step),
};

function showProblem(holder, problem) {
  hideTip();
  if (!problem) return replace(holder, note("No problem fits the filters."));
  const node = h("div");
  replace(holder,
    h("div", { class: "chips" }, mark(problem.correct), h("strong", null, problem.search), Object.entries(problem.cost).map(([name, value]) => h("span", { class: "chip" }, `${name.replace(/^num_/, "").replace(/_/g, " ")} `, h("b", null, amount(value))))),
    h("div", { class: "prompt", tabindex: "0" }, problem.prompt), problem.answer && h("p", null, "Reference answer: ", h("b", null, problem.answer)),
    problem.nodes.length ? [h("h3", null, "Tree"), h("div", { class: "tree-svg" }, drawTree(problem, (at, status, byId) => nodeDetail(node, at, status, byId))), node] : null,
    h("h3", null, "Candidates"),
    table(["", "score", "value", "end", "text"], problem.candidates.map((candidate, index) => [
      h("span", { class: `badge ${index === problem.chosen ? "chosen" : candidate.finished === false ? "pruned" : "kept"}` }, index === problem.chosen ? "★ chosen" : candidate.finished === false ? "… unfinished" : "finished"),
      num(candidate.score), num(candidate.value), candidate.end || "", h("span", null, candidate.text.replace(/\n/g, " ⏎ ").slice(0, 200))])));
  holder.scrollTop = 0;
  const frame = holder.querySelector(".tree-svg"), current = holder.querySelector(".node.current");
  if (frame && current) frame.scrollTop = current.querySelector("circle").cy.baseVal.value - frame.clientHeight / 2;
}

// Accuracy against sampled tokens, one line per method, with the n of each point in the table below.
function searchCurves(points) {
  const groups = new Map();
  for (const point of points) {
    if (!groups.has(point.line)) groups.set(point.line, []);
    groups.get(point.line).push(point);
  }
  const lines = [...groups].map(([label, rows], index) => {
    rows.sort((a, b) => a.tokens - b.tokens);
    const line = { label, index, x: rows.map((row) => row.tokens), mean: rows.map((row) => row.value), points: true };
    return rows.every((row) => isNumber(row.low)) ? { ...line, low: rows.map((row) => row.low), high: rows.map((row) => row.high) } : line;
  });
  const rows = points.map((point) => [point.line, num(point.n), num(point.tokens, 0), percent(point.value), isNumber(point.low) ? `${percent(point.low)} to ${percent(point.high)}` : "–"]);
  return h("div", { class: "stack", style: "margin-bottom:16px" },
    h("div", { class: "charts wide" }, lineChart({ title: "Accuracy against compute", hint: "tokens sampled per problem; bands are intervals over problems", height: 260, xName: "tokens", format: (v) => percent(v) }, lines).figure),
    h("details", null, h("summary", null, "Points as a table"), h("div", { class: "card" }, table(["method", "n", "tokens per problem", "accuracy", "interval"], rows))));
}
