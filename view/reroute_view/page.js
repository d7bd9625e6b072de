"use strict";
// what the page's data hold is said in page.py; everything is drawn on canvases, so that what is saved is what is seen
const data = JSON.parse(document.getElementById("data").textContent);
const { tiles, runs, steps, words, colours, heat } = data;
const slider = document.getElementById("step");
const cursors = runs.map(() => null);
const byCell = runs.map(run => {
  const found = tiles.map(tile => new Array(tile.rows * tile.columns).fill(-1));
  run.cells.forEach((cell, ordinal) => { if (cell) found[cell[0]][cell[1] * tiles[cell[0]].columns + cell[2]] = ordinal; });
  return found;
});
const pictures = [];
let mode = "states";

const stageOf = run => runs[run].stages[steps[slider.value].stages[run]];
const blocksOf = step => step.first === step.last ? `${step.first}` : `${step.first} to ${step.last}`;
const shorten = value => value === null ? "none" : Number(value.toPrecision(3)).toString();

function heatAt(share) {
  const at = Math.max(0, Math.min(1, share)) * (heat.length - 1), low = Math.min(Math.floor(at), heat.length - 2);
  return `rgb(${heat[low].map((from, i) => Math.round(from + (heat[low + 1][i] - from) * (at - low))).join(",")})`;
}

// the ends of the scale: those of all runs' stages here, so that panels can be compared
function scoreRange() {
  let low = Infinity, high = -Infinity; // a long video has more rows than a call takes arguments
  runs.forEach((_, run) => stageOf(run).scores.forEach(score => {
    if (score !== null && score > 0) { low = Math.min(low, score); high = Math.max(high, score); }
  }));
  return low <= high ? [low, high] : [1, 1];
}

// cells of all tiles are equally large, so that rows can be compared
function layout(width) {
  const across = Math.min(tiles.length, width < 420 ? 2 : 3), gap = 8, named = tiles.some(tile => tile.name) ? 18 : 0;
  const flow = [];
  for (let start = 0; start < tiles.length; start += across) flow.push(tiles.slice(start, start + across));
  const cell = Math.min(...flow.map(line => Math.min(
    (width - gap * (line.length - 1)) / line.reduce((sum, tile) => sum + tile.columns, 0),
    1.25 * width / Math.max(...line.map(tile => tile.rows)))));
  const boxes = [];
  let y = 0;
  flow.forEach(line => {
    let x = 0;
    line.forEach(tile => { boxes.push({ x, y: y + named, cell }); x += tile.columns * cell + gap; });
    y += named + cell * Math.max(...line.map(tile => tile.rows)) + gap;
  });
  return { boxes, height: Math.max(0, y - gap) };
}

function lines(context, colour, width, path) {
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.beginPath();
  path();
  context.stroke();
}

function hatch(context, x, y, size) {
  context.save();
  context.beginPath();
  context.rect(x, y, size, size);
  context.clip();
  const gap = Math.min(9, Math.max(3.5, size / 3));
  lines(context, colours.hatch, Math.min(1.2, Math.max(.6, size / 26)), () => {
    // lines go on from cell to cell
    for (let at = -((x + y) % gap); at < 2 * size; at += gap) { context.moveTo(x + at, y); context.lineTo(x + at - size, y + size); }
  });
  context.restore();
}

// one cell: picture beneath where there is one
function mark(context, state, x, y, size, pictured) {
  const inset = Math.max(.75, size / 16);
  if (state === "r" || state === "e" || state === "s") {
    const colour = state === "e" ? colours["re-enters"] : colours.runs;
    if (!pictured) { context.fillStyle = colour; context.fillRect(x, y, size, size); }
    const wide = state === "e" ? Math.min(4, Math.max(2, size / 7)) : Math.min(2.5, Math.max(1, size / 14));
    lines(context, pictured || state === "s" ? (state === "s" ? colours.paper : colour) : colours.paper, wide, () =>
      context.rect(x + wide / 2, y + wide / 2, size - wide, size - wide));
    if (state === "e") {
      const dot = Math.min(6, Math.max(1.6, size / 6));
      context.beginPath();
      context.arc(x + size / 2, y + size / 2, dot, 0, 7);
      context.fillStyle = colours.ink;
      context.fill();
      lines(context, colours.paper, Math.max(.8, dot / 3), () => context.arc(x + size / 2, y + size / 2, dot, 0, 7));
    }
    return;
  }
  context.globalAlpha = pictured && state !== "-" ? .74 : 1;
  context.fillStyle = colours.veil;
  context.fillRect(x, y, size, size);
  context.globalAlpha = 1;
  if (state === "d") hatch(context, x, y, size);
  if (state === "x") {
    const near = size * .32, far = size * .68;
    lines(context, colours.hatch, Math.min(2, Math.max(.8, size / 16)), () => {
      context.moveTo(x + near, y + near); context.lineTo(x + far, y + far);
      context.moveTo(x + far, y + near); context.lineTo(x + near, y + far);
    });
  }
  if (state === "-") {
    context.fillStyle = colours.hatch; // a dash: without it, grey shows the palest cell as the highest score
    context.fillRect(x + size * .3, y + size / 2 - inset / 2, size * .4, inset);
  }
}

function paint(context, run, width, cursor) {
  const { boxes } = layout(width), stage = stageOf(run), [low, high] = scoreRange(), span = Math.log(high / low) || 1;
  tiles.forEach((tile, index) => {
    const { x, y, cell } = boxes[index], image = pictures[index];
    if (tile.name) {
      context.fillStyle = context.inkOfPage;
      context.font = "12px system-ui, sans-serif";
      context.textBaseline = "alphabetic";
      context.fillText(tile.name, x, y - 5);
    }
    if (image) context.drawImage(image, x, y, cell * tile.columns, cell * tile.rows);
    byCell[run][index].forEach((ordinal, place) => {
      const left = x + (place % tile.columns) * cell, top = y + Math.floor(place / tile.columns) * cell;
      const state = ordinal < 0 ? "-" : stage.states[ordinal], score = ordinal < 0 ? null : stage.scores[ordinal];
      if (mode === "states") return mark(context, state, left, top, cell, Boolean(image));
      if (score === null) return mark(context, "-", left, top, cell, false);
      context.fillStyle = heatAt(score > 0 ? Math.log(score / low) / span : 0);
      context.fillRect(left, top, cell + .5, cell + .5);
    });
    if (mode === "scores") byCell[run][index].forEach((ordinal, place) => {
      if (ordinal < 0 || stage.scores[ordinal] === null || !"re".includes(stage.states[ordinal])) return;
      const left = x + (place % tile.columns) * cell, top = y + Math.floor(place / tile.columns) * cell;
      lines(context, colours.ink, 3, () => context.rect(left + 1.5, top + 1.5, cell - 3, cell - 3));
      lines(context, colours.paper, 1.5, () => context.rect(left + 1.5, top + 1.5, cell - 3, cell - 3));
    });
    if (cursor && cursor[0] === index) {
      const left = x + cursor[2] * cell, top = y + cursor[1] * cell;
      lines(context, colours.paper, 5, () => context.rect(left, top, cell, cell));
      lines(context, colours.ink, 2.5, () => context.rect(left, top, cell, cell));
    }
  });
}

function sized(canvas, width, height) {
  const ratio = Math.max(1, window.devicePixelRatio || 1);
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.inkOfPage = getComputedStyle(document.body).color;
  return context;
}

function tell(run) {
  const cursor = cursors[run], out = document.getElementById(`readout-${run}`);
  if (!cursor) { out.textContent = ""; return; }
  const [tile, row, column] = cursor, ordinal = byCell[run][tile][row * tiles[tile].columns + column], stage = stageOf(run);
  const name = `${tiles[tile].name ? `${tiles[tile].name}, ` : ""}row ${row + 1}, column ${column + 1}`;
  if (ordinal < 0) { out.textContent = `${name}: no visual row of the decoder`; return; }
  const score = stage.scores[ordinal], candidates = stage.scores.filter(own => own !== null).length;
  const scored = score === null ? (stage.title.startsWith("Before") ? "not scored yet" : "no candidate") : `score ${shorten(score)}, rank ${stage.ranks[ordinal]} of ${candidates}`;
  out.textContent = `${name}: ${words[stage.states[ordinal]]}; ${scored}; visual row ${ordinal}, prompt row ${runs[run].rows[ordinal]}`;
}

function show() {
  const step = steps[slider.value];
  document.getElementById("where").textContent = `${blocksOf(step)} of ${steps[steps.length - 1].last + 1}`;
  slider.setAttribute("aria-valuetext", `blocks ${blocksOf(step)}; ` + runs.map((own, run) => `${own.name}: ${stageOf(run).line}`).join("; "));
  runs.forEach((own, run) => {
    const canvas = document.getElementById(`grid-${run}`), width = canvas.clientWidth, stage = stageOf(run);
    paint(sized(canvas, width, layout(width).height), run, width, cursors[run]);
    document.getElementById(`line-${run}`).textContent = `${stage.title}: ${stage.line}`;
    canvas.setAttribute("aria-label", `${own.name}, blocks ${blocksOf(step)}: ${stage.line}`);
    const now = document.getElementById(`now-${run}`);
    now.setAttribute("x", step.first);
    now.setAttribute("width", step.last + 1 - step.first);
    tell(run);
  });
  const [low, high] = scoreRange(), scored = runs.some((_, run) => stageOf(run).scores.some(score => score !== null));
  document.getElementById("key-states").hidden = mode !== "states";
  document.getElementById("key-scores").hidden = mode !== "scores";
  document.getElementById("low").textContent = scored ? shorten(low) : "no scores here";
  document.getElementById("high").textContent = scored ? shorten(high) : "";
  if (mode === "scores") {
    const context = sized(document.getElementById("scale"), 128, 14);
    for (let at = 0; at < 128; at++) { context.fillStyle = heatAt(at / 127); context.fillRect(at, 0, 1.5, 14); }
  }
  keys();
}

function keys() {
  document.querySelectorAll("canvas[data-state]").forEach(canvas => {
    if (!canvas.clientWidth) return;
    const context = sized(canvas, 22, 22);
    context.fillStyle = canvas.dataset.state === "s" ? heatAt(.5) : "#9fb6c6"; // stands for a picture
    context.fillRect(0, 0, 22, 22);
    if (canvas.dataset.state === "s") {
      lines(context, colours.ink, 3, () => context.rect(1.5, 1.5, 19, 19));
      lines(context, colours.paper, 1.5, () => context.rect(1.5, 1.5, 19, 19));
    } else mark(context, canvas.dataset.state, 0, 0, 22, pictures.some(Boolean));
  });
}

function cellAt(canvas, event) {
  const box = canvas.getBoundingClientRect(), { boxes } = layout(canvas.clientWidth);
  for (let tile = 0; tile < tiles.length; tile++) {
    const { x, y, cell } = boxes[tile];
    const row = Math.floor((event.clientY - box.top - y) / cell), column = Math.floor((event.clientX - box.left - x) / cell);
    if (row >= 0 && column >= 0 && row < tiles[tile].rows && column < tiles[tile].columns) return [tile, row, column];
  }
  return null;
}

function move([tile, row, column], key) {
  const { rows, columns } = tiles[tile];
  if (key === "ArrowLeft") return column > 0 ? [tile, row, column - 1] : tile > 0 ? [tile - 1, Math.min(row, tiles[tile - 1].rows - 1), tiles[tile - 1].columns - 1] : [tile, row, column];
  if (key === "ArrowRight") return column < columns - 1 ? [tile, row, column + 1] : tile < tiles.length - 1 ? [tile + 1, Math.min(row, tiles[tile + 1].rows - 1), 0] : [tile, row, column];
  if (key === "ArrowUp") return [tile, Math.max(0, row - 1), column];
  if (key === "ArrowDown") return [tile, Math.min(rows - 1, row + 1), column];
  if (key === "Home") return [tile, row, 0];
  if (key === "End") return [tile, row, columns - 1];
  return null;
}

// the same patch in every panel: that is what is compared
function point(cursor) {
  runs.forEach((_, run) => { cursors[run] = cursor; });
  show();
}

runs.forEach((_, run) => {
  const canvas = document.getElementById(`grid-${run}`);
  canvas.addEventListener("pointermove", event => {
    const cell = cellAt(canvas, event), before = cursors[run];
    if (cell && (!before || cell.some((value, i) => value !== before[i]))) point(cell);
  });
  canvas.addEventListener("pointerdown", event => { const cell = cellAt(canvas, event); if (cell) point(cell); });
  canvas.addEventListener("focus", () => { if (!cursors[run] && canvas.matches(":focus-visible")) point([0, 0, 0]); });
  canvas.addEventListener("keydown", event => {
    const next = move(cursors[run] || [0, 0, 0], event.key);
    if (next) { event.preventDefault(); point(next); }
    if (event.key === "Escape") point(null);
  });
});

// on paper whatever the page's scheme; the name says which blocks
function save() {
  const width = 560, gap = 32, heading = 96, { height } = layout(width), canvas = document.createElement("canvas"), ratio = 2;
  const total = runs.length * width + (runs.length + 1) * gap, step = steps[slider.value];
  canvas.width = total * ratio;
  canvas.height = (heading + height + 150) * ratio;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.inkOfPage = colours.ink;
  context.fillStyle = colours.paper;
  context.fillRect(0, 0, canvas.width, canvas.height);
  const write = (text, x, y, font, most) => { context.font = `${font} system-ui, sans-serif`; context.fillStyle = colours.ink; context.textBaseline = "alphabetic"; context.fillText(text, x, y, most); };
  write(`Blocks ${blocksOf(step)}${data.model ? ` · ${data.model}` : ""}`, gap, 36, "bold 20px", total - 2 * gap);
  write(data.prompt.length > 110 * runs.length ? `${data.prompt.slice(0, 110 * runs.length)}…` : data.prompt, gap, 60, "14px", total - 2 * gap);
  runs.forEach((own, run) => {
    const left = gap + run * (width + gap);
    write(own.name, left, 86, "bold 15px", width);
    context.save();
    context.translate(left, heading);
    paint(context, run, width, null);
    context.restore();
    write(`${stageOf(run).title}: ${stageOf(run).line}`, left, heading + height + 24, "14px", width);
  });
  let x = gap;
  const below = heading + height + 48;
  if (mode === "states") document.querySelectorAll("#key-states li").forEach(item => {
    const own = item.querySelector("canvas");
    context.drawImage(own, x, below, 22, 22);
    write(item.textContent.trim(), x + 30, below + 16, "14px");
    x += 60 + context.measureText(item.textContent.trim()).width;
  });
  else {
    const [low, high] = scoreRange();
    for (let at = 0; at < 160; at++) { context.fillStyle = heatAt(at / 159); context.fillRect(x + at, below + 2, 1.5, 16); }
    write(`score from ${shorten(low)} to ${shorten(high)}, logarithmic; framed: runs`, x + 172, below + 16, "14px");
  }
  write("vlm-reroute trace", gap, below + 62, "12px");
  const link = document.createElement("a");
  link.download = `trace-blocks-${step.first}-${step.last}${mode === "scores" ? "-scores" : ""}.png`;
  canvas.toBlob(blob => { link.href = URL.createObjectURL(blob); link.click(); setTimeout(() => URL.revokeObjectURL(link.href), 10000); });
}

function load(tile, index) {
  return new Promise(done => {
    if (!tile.picture) { pictures[index] = null; done(); return; }
    const image = new Image();
    image.onload = () => { pictures[index] = image; done(); };
    image.onerror = () => { pictures[index] = null; done(); };
    image.src = tile.picture;
  });
}

document.getElementById("controls").hidden = false;
slider.max = steps.length - 1;
slider.value = Math.min(1, steps.length - 1); // the first decision
slider.disabled = steps.length === 1;
slider.addEventListener("input", show);
document.querySelectorAll("input[name=mode]").forEach(button => button.addEventListener("change", () => { mode = button.value; show(); }));
document.getElementById("save").addEventListener("click", save);
window.addEventListener("resize", show);
// names of frames have the page's ink, which is dark on paper whatever the screen's scheme
for (const query of ["(prefers-color-scheme: dark)", "print"]) window.matchMedia(query).addEventListener("change", show);
Promise.all(tiles.map(load)).then(() => { show(); document.body.dataset.ready = "yes"; });
