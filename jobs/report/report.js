"use strict";
// Filters and sorts the gallery, and shows a face with the most alike ones. Names are only ever set as text.
const find = (id) => document.getElementById(id);
const data = JSON.parse(find("data").textContent);
const list = find("tiles");
const tiles = [...list.children];
const numberOf = new Map(tiles.map((tile, i) => [tile, i]));
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const alike = new Uint16Array(bytes(data.alike).buffer);
const cosines = new Int8Array(bytes(data.cosines).buffer);
const NOBODY = 0xffff;
const written = (number, digits) => number.toFixed(digits).replace("-", "−");
data.size = data.box.map(([x1, y1, x2, y2]) => Math.max(x2 - x1, y2 - y1));
data.likeness = tiles.map((_, i) => (data.listed ? cosines[i * data.listed] : null));
const names = data.photos.map(([name]) => name.toLowerCase());

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

// --- the gallery

function matches(i) {
  return names[data.photo[i]].includes(find("name").value.toLowerCase())
    && data.size[i] >= Number(find("size").value)
    && data.score[i] >= 100 * Number(find("score").value)
    && (!find("person")?.value || data.person[i] === Number(find("person").value))
    && (find("eyes").value === "" || data.eyes[i] === Number(find("eyes").value));
}

function arrange() {
  const numbers = [...tiles.keys()].filter(matches);
  const values = data[find("order").value];
  if (values) numbers.sort((a, b) => (values[b] ?? -Infinity) - (values[a] ?? -Infinity) || a - b);
  if (find("reverse").checked) numbers.reverse();
  list.replaceChildren(...numbers.map((i) => tiles[i]));
  list.scrollTop = 0;
  find("matching").textContent = `${numbers.length.toLocaleString("en")} of ${tiles.length.toLocaleString("en")} faces`;
  reach(list.firstElementChild);
}

// One face at a time is in the order of the Tab key; the arrow keys move among them.
let reached;
function reach(tile) {
  if (reached) reached.firstElementChild.tabIndex = -1;
  reached = tile;
  if (reached) reached.firstElementChild.tabIndex = 0;
}

function move(event) {
  const shown = [...list.children];
  const columns = getComputedStyle(list).gridTemplateColumns.split(" ").length;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -Infinity, End: Infinity };
  if (!(event.key in steps) || !reached) return;
  event.preventDefault();
  const next = Math.min(Math.max(shown.indexOf(reached) + steps[event.key], 0), shown.length - 1);
  reach(shown[next]);
  reached.firstElementChild.focus();
}

// --- one face

const pictureOf = (i) => {
  const picture = tiles[i].querySelector("img")?.cloneNode() ?? make("span", "no picture", "dim");
  if (picture.tagName === "IMG") picture.alt = nameOf(i);
  return picture;
};
const nameOf = (i) => `${data.photos[data.photo[i]][0].split("/").pop()} #${data.index[i]}`;

function mapOf(i) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const [, width, height] = data.photos[data.photo[i]];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("class", "map");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "where the face is in its photo");
  for (let other = 0; other < tiles.length; other++) {
    if (data.photo[other] !== data.photo[i]) continue;
    const [x1, y1, x2, y2] = data.box[other];
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [name, value] of Object.entries({ x: x1, y: y1, width: x2 - x1, height: y2 - y1 })) {
      rect.setAttribute(name, Math.max(0, value));
    }
    if (other === i) rect.setAttribute("class", "this");
    svg.append(rect);
  }
  return svg;
}

function show(i) {
  find("face-name").textContent = nameOf(i);
  const pair = find(`face-${i}`)?.querySelector(".pair").cloneNode(true);
  find("face-pictures").replaceChildren(pair ?? pictureOf(i), mapOf(i));
  const photo = find(`photo-${data.photo[i]}`);
  const facts = [
    ["file", data.photos[data.photo[i]][0]], ["score", (data.score[i] / 100).toFixed(2)], ["size", `${data.size[i]} px`],
    ["roll", data.roll[i] === null ? "–" : `${written(data.roll[i], 0)}°`], ["sharpness", data.sharpness[i] ?? "–"],
    ["norm", data.norm[i] === null ? "–" : (data.norm[i] / 100).toFixed(2)],
    ...(data.person[i] === null ? [] : [["person", data.person[i]]]),
    ["eyes", data.eyes[i] ? "sure" : "not sure"],
  ].map(([name, value]) => {
    const row = make("div");
    row.append(make("dt", name), make("dd", value));
    return row;
  });
  if (photo) {
    const link = make("a", "its photo, with all faces");
    link.href = `#${photo.id}`;
    link.addEventListener("click", () => find("face").close());
    facts.push(link);
  }
  find("face-facts").replaceChildren(...facts);
  find("face-alike").replaceChildren(...alikeTo(i));
  if (!find("face").open) find("face").showModal();
  find("face").scrollTop = 0;
}

function alikeTo(i) {
  const rows = [];
  for (let at = i * data.listed; at < (i + 1) * data.listed && alike[at] !== NOBODY; at++) {
    const other = alike[at];
    const row = make("li");
    const button = make("button");
    button.type = "button";
    button.append(pictureOf(other));
    button.addEventListener("click", () => show(other));
    const isSame = data.same !== null && cosines[at] >= 100 * data.same;
    if (isSame) row.className = "same";
    row.append(button, make("b", `cosine ${written(cosines[at] / 100, 2)}`), make("br"), make("span", nameOf(other)));
    if (isSame) row.append(make("br"), make("span", "above the threshold", "dim"));
    rows.push(row);
  }
  return rows.length ? rows : [make("li", "There is no face of another photo.")];
}

let due;
find("filter").addEventListener("input", () => {
  cancelAnimationFrame(due);
  due = requestAnimationFrame(arrange);
});
find("filter").addEventListener("submit", (event) => event.preventDefault());
list.addEventListener("click", (event) => {
  const tile = event.target.closest("li");
  if (!tile) return;
  reach(tile);
  show(numberOf.get(tile));
});
list.addEventListener("keydown", move);
find("close").addEventListener("click", () => find("face").close());
find("filter").hidden = false;
for (const tile of tiles) tile.firstElementChild.tabIndex = -1;
arrange();
