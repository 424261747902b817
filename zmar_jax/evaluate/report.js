"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
// JSON has no infinity
for (const image of data.images)
  for (const column of data.columns)
    if (column.digits !== undefined && image[column.key] === "infinite") image[column.key] = Infinity;
const byId = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function shown(image, column) {
  const value = image[column.key];
  if (column.digits === undefined) return value;
  if (value === Infinity) return "infinite";
  return value === null ? "not finite" : (value * (column.factor ?? 1)).toFixed(column.digits);
}

function showMeans() {
  byId("facts").append(
    ...data.facts.map(([name, value, detail]) => make("div", {},
      make("dt", {}, name), make("dd", {}, make("strong", {}, value), " ", detail))));
  const cells = (tag, row) => make("tr", {}, ...row.map((text) => make(tag, {}, text)));
  const rows = data.table.rows.map((row) => cells("td", row));
  rows.at(-2).className = "own";
  byId("means").append(
    make("thead", {}, cells("th", data.table.head)), make("tbody", {}, ...rows));
  byId("notes").append(...data.table.notes.map((text) => make("li", {}, text)));
}

/* The table, and its order, which the cards follow. */
function showImages(cards) {
  const rows = data.images.map((image, i) => {
    const cells = data.columns.map((column) => make("td", {}, shown(image, column)));
    cells[0].replaceChildren(make("a", { href: `#picture-${i}` }, image.id));
    return make("tr", {}, ...cells);
  });
  const body = make("tbody", {}, ...rows);
  const heads = data.columns.map((column) => {
    const button = make("button", { type: "button" }, column.label);
    const head = make("th", { scope: "col" }, button);
    button.addEventListener("click", () => {
      const descending = head.ariaSort === "ascending";
      heads.forEach((other) => { other.ariaSort = null; });
      head.ariaSort = descending ? "descending" : "ascending";
      const order = sorted(column.key, descending ? -1 : 1);
      body.append(...order.map((i) => rows[i]));
      byId("cards").append(...order.map((i) => cards[i]));
    });
    return head;
  });
  byId("images").append(make("thead", {}, make("tr", {}, ...heads)), body);
}

function sorted(key, sign) {
  const value = (i) => data.images[i][key];
  return data.images.map((_, i) => i).sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null) || a - b;
    const order = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
    return sign * order || a - b;
  });
}

function showScatter() {
  const [across, up] = [data.plot.x, data.plot.y].map(
    (key) => data.columns.find((column) => column.key === key));
  const value = (image, column) => image[column.key] * (column.factor ?? 1);
  const named = (column) => column.label + (column.unit && `,${column.unit}`);
  byId("plotted").textContent = data.plot.title;
  const points = data.images.map((image, i) => [value(image, across), value(image, up), i])
    .filter(([, y, i]) => data.images[i][up.key] !== null && Number.isFinite(y));
  if (!points.length) return;
  const [left, right, top, bottom] = [76, 624, 12, 284];
  const x = scale(points.map((p) => p[0]), left, right);
  const y = scale(points.map((p) => p[1]), bottom, top);
  const parts = [];
  for (const tick of x.ticks) {
    parts.push(svg("line", { x1: x(tick), x2: x(tick), y1: top, y2: bottom }));
    parts.push(svg("text", { x: x(tick), y: bottom + 22, "text-anchor": "middle" }, tick));
  }
  for (const tick of y.ticks) {
    parts.push(svg("line", { x1: left, x2: right, y1: y(tick), y2: y(tick) }));
    parts.push(svg("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, tick));
  }
  const middle = (top + bottom) / 2;
  parts.push(svg("text", { x: (left + right) / 2, y: 336, "text-anchor": "middle" },
    named(across)));
  parts.push(svg("text", { x: 22, y: middle, "text-anchor": "middle",
    transform: `rotate(-90 22 ${middle})` }, named(up)));
  for (const [a, b, i] of points) {
    const image = data.images[i];
    const text = [image.id, ...[up, across].map((c) => `${c.label} ${shown(image, c)}`)].join(", ");
    parts.push(svg("a", { href: `#picture-${i}`, "aria-label": text },
      svg("circle", { cx: x(a), cy: y(b), r: 5 }, svg("title", {}, text))));
  }
  byId("scatter").append(...parts);
}

/* Maps values to a range of pixels; `ticks` are round numbers in it. */
function scale(values, from, to) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const span = high - low || 1;
  const raw = span / 5;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * [1, 2, 5, 10].find((n) => n * unit >= raw);
  const [first, last] = [Math.floor(low / step), Math.max(Math.ceil(high / step), Math.floor(low / step) + 1)];
  const place = (v) => from + (to - from) * (v / step - first) / (last - first);
  place.ticks = Array.from({ length: last - first + 1 }, (_, i) => +((first + i) * step).toPrecision(6));
  return place;
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
  element.append(...children);
  return element;
}

function makeCard(image, i) {
  const picture = (name, alt) => make("img", { className: name, alt, draggable: false });
  const restored = picture("restored", "restored");
  const left = picture("left", "input");
  const lost = picture("lost", "lost pixels");
  const uncertainty = picture("uncertainty", "uncertainty");
  const labels = [make("span", {}), make("span", {})];
  const stage = make("div", { className: "stage" }, restored, uncertainty, left, lost, ...labels);
  stage.style.aspectRatio = `${image.width} / ${image.height}`;
  const slider = make("input", {
    type: "range", min: 0, max: 100, step: 0.5, value: 50,
    ariaLabel: `${image.id}: how much of the left picture`,
  });
  const cut = () => stage.style.setProperty("--cut", `${slider.value}%`);
  const drag = (event) => {
    if (!event.buttons) return;
    const box = stage.getBoundingClientRect();
    slider.value = 100 * (event.clientX - box.left) / box.width;
    cut();
  };
  slider.addEventListener("input", cut);
  stage.addEventListener("pointerdown", drag);
  stage.addEventListener("pointermove", drag);
  cut();
  const numbers = data.columns.slice(1, 4)
    .map((column) => `${column.label} ${shown(image, column)}`).join(" · ");
  const card = make("article", { id: `picture-${i}` },
    make("h3", {}, image.id), make("p", {}, numbers), stage, slider);
  card.show = (view) => {
    const files = image.pictures;
    restored.src = files.restored;
    left.src = files[view.left];
    labels[0].textContent = left.alt = view.left === "gt" ? "ground truth" : "input";
    labels[1].textContent = view.uncertainty ? "uncertainty" : "restored";
    left.classList.toggle("brighten", view.brighten && view.left === "input");
    for (const [element, name] of [[lost, "lost"], [uncertainty, "uncertainty"]]) {
      element.hidden = !view[name];
      if (view[name]) element.src = files[name];
    }
  };
  return card;
}

/* A card decodes its pictures when it comes near the window. */
function showCards(cards) {
  const form = byId("view");
  const near = new Set();
  const view = () => ({
    left: form.elements.left.value, brighten: form.elements.brighten.checked,
    lost: form.elements.lost.checked, uncertainty: form.elements.uncertainty.checked,
  });
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) { near.delete(target); continue; }
      near.add(target);
      target.show(view());
    }
  }, { rootMargin: "600px" });
  form.addEventListener("change", () => near.forEach((card) => card.show(view())));
  form.addEventListener("submit", (event) => event.preventDefault());
  byId("cards").append(...cards);
  cards.forEach((card) => observer.observe(card));
  byId("truth").hidden = !("gt" in data.images[0].pictures);
  byId("deviation").hidden = !data.deviation;
  byId("deviation").querySelector("span").textContent = data.deviation;
}

const cards = data.images.map(makeCard);
showMeans();
showScatter();
showImages(cards);
showCards(cards);
