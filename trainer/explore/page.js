// The explorer's page. Every text from the model or the data enters the page as text, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
let about = null;
let answer = null; // what is shown
let asked = null; // how it was asked: {words}, {picture} or {file}
let focused = null; // the expert whose card is open: {layer, expert}
let opener = null; // what had the keyboard before the card opened
let running = null; // the question under way, to be given up for a newer one

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

function tell(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

async function fetched(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new Error("no answer: is the explorer still running?");
  }
  const values = await response.json().catch(() => ({ problem: `no answer (${response.status})` }));
  if (!response.ok) throw new Error(values.problem);
  return values;
}

const plural = (count, one, several = `${one}s`) => `${count} ${count === 1 ? one : several}`;
const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)}%`;
const gateText = (gate) => (gate >= 0.995 ? "1.0" : gate.toFixed(2).slice(1));
const pictureOf = (number) => `picture.png?number=${number}`;

// Asking --------------------------------------------------------------------------------------------------------------------

async function ask(question) {
  running?.abort();
  const mine = (running = new AbortController());
  const slots = new URLSearchParams({ slots: document.querySelector("[name=slots]:checked").value });
  $("answer").setAttribute("aria-busy", "true");
  tell("…");
  try {
    const options = { signal: mine.signal };
    let found;
    if (question.words !== undefined) {
      found = await fetched(`api/words?${slots}`, { ...options, method: "POST", body: question.words });
    } else if (question.file) {
      found = await fetched(`api/image?${slots}`, { ...options, method: "POST", body: question.file });
    } else {
      slots.set("number", question.picture);
      found = await fetched(`api/picture?${slots}`, options);
    }
    asked = question;
    answer = found;
    tell("");
    show();
  } catch (problem) {
    if (problem.name !== "AbortError") tell(problem.message, true);
  } finally {
    if (running === mine) {
      running = null;
      $("answer").removeAttribute("aria-busy");
    }
  }
}

// The address keeps the question, so that the browser's "back" works; not that of a file, which only this page has.
function goTo(question) {
  const hash = question.words !== undefined ? `#words=${encodeURIComponent(question.words)}` : `#picture=${question.picture}`;
  if (location.hash === hash) ask(question);
  else location.hash = hash;
}

function askAddress() {
  const [kind, value = ""] = location.hash.slice(1).split(/=(.*)/s);
  let words;
  try {
    words = decodeURIComponent(value);
  } catch {
    return;
  }
  if (kind === "words" && words) {
    $("words").value = words;
    ask({ words });
  } else if (kind === "picture" && /^\d+$/.test(value)) {
    $("words").value = "";
    ask({ picture: Number(value) });
  }
}

function askFile(file) {
  if (!file) {
    tell("that was no file: save the picture, then drop or choose it", true);
    return;
  }
  if (file.size > about.most_bytes) {
    tell(`too large: at most ${about.most_bytes / 2 ** 20} MiB`, true);
    return;
  }
  $("words").value = "";
  history.pushState(null, "", "#");
  ask({ file });
}

// Showing -------------------------------------------------------------------------------------------------------------------

function show() {
  $("answer").hidden = false;
  showAsked();
  showPictures();
  showTexts();
  showRouting();
}

function showAsked() {
  const notes = [];
  if (answer.kind === "text") {
    if (!answer.known) notes.push("The tokenizer knows none of these words.");
    if (answer.cut) notes.push(`Too long: the model reads ${plural(about.text_length, "token")}; the last ${answer.cut} were cut off.`);
    $("asked").replaceChildren(make("div", {}, make("q", {}, answer.text), ...notes.map((note) => make("p", { class: "soft" }, note))));
    return;
  }
  const said = answer.said.map((text) => make("p", {}, textButton(text)));
  if (answer.id) said.push(make("p", { class: "soft" }, answer.id));
  $("asked").replaceChildren(make("img", { src: answer.shown, alt: "The picture as the model sees it" }), make("div", {}, ...said));
}

const textButton = (text) => make("button", { type: "button", class: "plain", onclick: () => goTo({ words: text }) }, text);

function showPictures() {
  $("pictures").replaceChildren(
    ...answer.pictures.map(({ number, cosine, said }) =>
      make(
        "button",
        { type: "button", title: said.join("\n") || false, onclick: () => goTo({ picture: number }) },
        make("img", { src: pictureOf(number), alt: said[0] ?? `picture ${number}` }),
        make("span", { class: "number" }, cosine.toFixed(3), ...tick(said.includes(answer.text), "it has this caption")),
        make("span", { "aria-hidden": "true" }, said[0] ?? ""),
      ),
    ),
  );
}

function showTexts() {
  $("texts-section").hidden = answer.texts.length === 0;
  $("texts").replaceChildren(
    ...answer.texts.map(({ text, cosine }) =>
      make(
        "li",
        {},
        make("span", { class: "number" }, cosine.toFixed(3), ...tick(answer.said?.includes(text), "its own caption")),
        textButton(text),
      ),
    ),
  );
}

// What belongs to the query: a hit of retrieval.
const tick = (isOwn, why) => (isOwn ? [" ", make("span", { class: "own", title: why, role: "img", "aria-label": why }, "✓")] : []);

function showRouting() {
  const ofImage = answer.kind === "image";
  $("controls").hidden = answer.layers.length === 0;
  $("marks").hidden = $("strength-label").hidden = !ofImage;
  $("layers").classList.toggle("of-image", ofImage);
  $("told").textContent = routingInWords();
  $("layers").replaceChildren(...answer.layers.map((layer) => showLayer(layer, ofImage)));
  markFocused();
}

function routingInWords() {
  if (answer.layers.length === 0) return `${about.model} has no expert layers: every token passes the same weights, so there is nobody to show.`;
  const training = document.querySelector("[name=slots]:checked").value === "training";
  const byExperts = about.router.choice === "expert";
  if (training) {
    return (
      `Routed in a batch with ${plural(about.competing - 1, "other pair")} of the evaluation set, with the slots of training ` +
      `(capacity factor ${about.router.capacity_factor}${byExperts ? "" : `, priority by ${about.router.priority}`}), without the router's noise. ` +
      "A token that finds no slot is dropped: none of these experts adds anything to it."
    );
  }
  return byExperts ? "Experts choose: a token can be taken by several of them, or by none." : "In evaluation every token gets a slot: nothing is dropped.";
}

function showLayer(layer, ofImage) {
  const dropped = layer.tokens.filter((choices) => !choices[0].kept).length;
  const counts = new Map();
  for (const choices of layer.tokens) for (const { expert, kept } of choices) if (kept) counts.set(expert, (counts.get(expert) ?? 0) + 1);
  const parts = [
    `${plural(layer.tokens.length, ofImage ? "patch" : "token", ofImage ? "patches" : "tokens")}, ${plural(counts.size, "expert")}`,
    dropped ? `${dropped} dropped` : "none dropped",
  ];
  const shares = Object.entries(layer.success).filter(([, share]) => share < 1);
  if (shares.length) parts.push(`in the whole batch ${shares.map(([name, share]) => `${percent(share)} of ${name} tokens got a slot`).join(", ")}`);
  const detail = make("p", { class: "detail soft", "aria-live": "off" }, "");
  return make(
    "div",
    { class: "layer", role: "group", "aria-label": `Block ${layer.layer}` },
    make("h3", {}, `Block ${layer.layer}`),
    make("p", { class: "soft" }, parts.join(" · ")),
    ofImage ? showPatches(layer, detail) : showWords(layer, detail),
    detail,
    showExperts(layer, counts),
  );
}

function showPatches(layer, detail) {
  const columns = about.columns;
  const grid = make("div", { class: "patches", "--columns": columns, "data-layer": layer.layer });
  const below = make("div", { class: "below" });
  below.style.backgroundImage = `url("${answer.shown}")`;
  grid.style.gridTemplate = `repeat(${columns}, 1fr) / repeat(${columns}, 1fr)`;
  layer.tokens.forEach((choices, place) => {
    const where = `row ${Math.floor(place / columns) + 1}, column ${(place % columns) + 1}`;
    const token = tokenButton(layer, choices, where, detail);
    token.style.setProperty("--fill", fill(choices));
    token.append(make("span", {}, ""));
    grid.append(token);
  });
  mark(grid, layer);
  return make("div", { class: "picture" }, below, arrows(grid, columns));
}

// Of several experts that took a patch, stripes: as wide as their gates are large.
function fill(choices) {
  const kept = choices.filter((choice) => choice.kept);
  if (kept.length < 2) return about.colours[choices[0].expert];
  const sum = kept.reduce((total, { gate }) => total + gate, 0) || 1;
  let begin = 0;
  const stops = kept.map(({ expert, gate }) => {
    const end = begin + (100 * gate) / sum;
    const stop = `${about.colours[expert]} ${begin}% ${end}%`;
    begin = end;
    return stop;
  });
  return `linear-gradient(90deg, ${stops.join(", ")})`;
}

function mark(grid, layer) {
  const what = document.querySelector("[name=mark]:checked").value;
  [...grid.children].forEach((token, place) => {
    const [first] = layer.tokens[place];
    token.firstChild.textContent = what === "none" ? "" : !first.kept ? "✕" : what === "gate" ? gateText(first.gate) : first.expert;
  });
}

function showWords(layer, detail) {
  const line = make("div", { class: "words", "data-layer": layer.layer });
  layer.tokens.forEach((choices, place) => {
    const piece = answer.pieces[place];
    const isEnd = piece === undefined;
    const begins = isEnd || piece.startsWith("▁");
    const word = isEnd ? "end" : piece.replaceAll("▁", "") || "␣";
    const token = tokenButton(layer, choices, isEnd ? "the end of the text" : `“${word}”`, detail);
    token.classList.toggle("begins", begins);
    token.append(make("span", { class: isEnd ? "word end" : "word" }, word), ...choices.map(bar));
    line.append(token);
  });
  return arrows(line, 1);
}

function bar({ expert, gate, kept }) {
  const colour = about.colours[expert];
  const attributes = { class: kept ? "bar number" : "bar number dropped", "--fill": colour, "--on-fill": inkOn(colour) };
  return make("span", attributes, make("span", {}, kept ? `${expert} · ${gateText(gate)}` : "✕"));
}

function tokenButton(layer, choices, where, detail) {
  const [first] = choices;
  const told = choices
    .map(({ expert, gate, kept }) => (kept ? `expert ${expert}, gate ${gate.toFixed(3)}` : `dropped: expert ${expert} was full (gate ${gate.toFixed(3)})`))
    .join("; ");
  const said = about.router.choice === "expert" && !first.kept ? `no expert took it (largest gate: ${first.gate.toFixed(3)}, expert ${first.expert})` : told;
  const tellDetail = () => (detail.textContent = `${where}: ${said}`);
  const token = make("button", {
    type: "button",
    class: `token${first.kept ? "" : " dropped"}`,
    tabindex: "-1",
    "aria-label": `${where}: ${said}`,
    "data-experts": choices.filter(({ kept }) => kept).map(({ expert }) => expert).join(" "),
    "--gate": first.gate,
    onclick: () => openExpert(layer.layer, first.expert, token),
    onfocus: tellDetail,
    onpointerenter: tellDetail,
  });
  return token;
}

// One stop for the tab key; the arrows move among the tokens.
function arrows(group, columns) {
  if (group.firstChild) group.firstChild.tabIndex = 0;
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
  group.addEventListener("keydown", (event) => {
    const tokens = [...group.children];
    const target = tokens[tokens.indexOf(document.activeElement) + (steps[event.key] ?? NaN)];
    if (!target) return;
    event.preventDefault();
    for (const token of tokens) token.tabIndex = token === target ? 0 : -1;
    target.focus();
  });
  return group;
}

function showExperts(layer, counts) {
  const experts = Array.from({ length: about.layers[layer.layer] }, (_, expert) => expert);
  return make(
    "div",
    { class: "experts", role: "group", "aria-label": `Experts of block ${layer.layer}` },
    ...experts.map((expert) => {
      const count = counts.get(expert) ?? 0;
      const button = make(
        "button",
        {
          type: "button",
          class: count ? "" : "unused",
          "data-layer": layer.layer,
          "data-expert": expert,
          "aria-label": `expert ${expert}: ${plural(count, "token")}`,
          onclick: () => openExpert(layer.layer, expert, button),
        },
        chip(expert),
        count ? String(count) : "",
      );
      return button;
    }),
  );
}

const chip = (expert) => make("span", { class: "chip", "--fill": about.colours[expert], "--on-fill": inkOn(about.colours[expert]) }, String(expert));

// Black or white, whichever is read more easily on a colour (contrast as in WCAG 2.2).
function inkOn(colour) {
  const [red, green, blue] = [1, 3, 5]
    .map((place) => parseInt(colour.slice(place, place + 2), 16) / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000000" : "#ffffff";
}

// The card of an expert -----------------------------------------------------------------------------------------------------

async function openExpert(layer, expert, from) {
  let card;
  try {
    card = await fetched(`api/expert?${new URLSearchParams({ layer, expert })}`);
  } catch (problem) {
    tell(problem.message, true);
    return;
  }
  opener = from;
  focused = { layer, expert };
  $("expert-title").replaceChildren(chip(expert), ` Expert ${expert} of block ${layer}`);
  $("card").replaceChildren(...cardParts(card));
  $("expert").hidden = false;
  $("expert").scrollTop = 0;
  document.body.classList.add("with-expert");
  markFocused();
  // On a phone the card covers the lower half.
  if (matchMedia("(max-width: 40rem)").matches) from.closest(".layer").scrollIntoView({ block: "start" });
  $("expert-title").focus({ preventScroll: true });
}

function closeExpert() {
  if (!focused) return;
  focused = null;
  $("expert").hidden = true;
  document.body.classList.remove("with-expert");
  markFocused();
  opener?.focus({ preventScroll: true });
}

function cardParts(card) {
  const parts = [
    make("p", { class: "soft" }, `Over the ${plural(about.gallery.images, "picture")} and ${plural(about.gallery.texts, "text")} of the evaluation set, as in evaluation:`),
    make("div", { class: "share" }, ...["image", "text"].flatMap((modality) => shareRow(card, modality))),
    make("h3", {}, "Patches with the largest gates"),
    card.patches.length ? make("div", { class: "crops" }, ...card.patches.map(crop)) : make("p", { class: "soft" }, "It took no patch."),
    make("h3", {}, "Words with the largest gates"),
    card.words.length ? wordTable(card.words) : make("p", { class: "soft" }, "It took no word."),
  ];
  if (card.typical.length) parts.push(make("h3", {}, "Typical words"), typicalTable(card.typical));
  return parts;
}

function shareRow(card, modality) {
  const bar = make("div", {});
  bar.style.width = `${100 * Math.min(1, card.share[modality])}%`;
  bar.style.background = `var(--${modality})`;
  const gate = card.share[modality] ? `, mean gate ${card.gate[modality].toFixed(2)}` : "";
  return [
    make("span", {}, `${modality} tokens`),
    make("span", { class: "track" }, bar),
    make("span", { class: "number" }, `${percent(card.share[modality])}${gate}`),
  ];
}

// A patch with what is around it: at the edge of its picture the window moves inwards.
function crop({ image, row, column, gate }) {
  const columns = about.columns;
  const around = Math.max(1, Math.min(2, Math.floor((columns - 1) / 4)));
  const window = Math.min(columns, 2 * around + 1);
  const [top, left] = [row, column].map((place) => Math.max(0, Math.min(columns - window, place - around)));
  const picture = make("span", {
    class: "crop",
    "--left": `${(100 * (column - left)) / window}%`,
    "--top": `${(100 * (row - top)) / window}%`,
    "--side": `${100 / window}%`,
  });
  const spare = Math.max(1, columns - window);
  picture.style.backgroundImage = `url("${pictureOf(image)}")`;
  picture.style.backgroundSize = `${(100 * columns) / window}%`;
  picture.style.backgroundPosition = `${(100 * left) / spare}% ${(100 * top) / spare}%`;
  return make(
    "button",
    { type: "button", "aria-label": `patch of picture ${image}, row ${row + 1}, column ${column + 1}, gate ${gate.toFixed(3)}`, onclick: () => goTo({ picture: image }) },
    picture,
    make("span", { class: "number" }, gate.toFixed(2)),
  );
}

function wordTable(words) {
  const rows = words.map(({ word, gate, text }) =>
    make("tr", {}, make("td", {}, word), make("td", { class: "number" }, gate.toFixed(2)), make("td", {}, textButton(text))),
  );
  return table(["word", "gate", "in"], rows);
}

function typicalTable(words) {
  const rows = words.map(({ word, share, lift }) =>
    make("tr", {}, make("td", {}, word), make("td", { class: "number" }, percent(share)), make("td", { class: "number" }, `${lift.toFixed(1)}×`)),
  );
  return table(["word", "of the word here", "as frequent as overall"], rows);
}

function table(heads, rows) {
  return make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))), make("tbody", {}, ...rows));
}

function markFocused() {
  for (const group of document.querySelectorAll(".patches, .words")) {
    const here = focused !== null && Number(group.dataset.layer) === focused.layer;
    const tokens = [...group.children];
    const taken = tokens.map((token) => here && token.dataset.experts.split(" ").includes(String(focused.expert)));
    group.classList.toggle("focused", taken.some(Boolean));
    tokens.forEach((token, place) => token.classList.toggle("of-expert", taken[place]));
  }
  for (const button of document.querySelectorAll(".experts button")) {
    const here = focused !== null && Number(button.dataset.layer) === focused.layer && Number(button.dataset.expert) === focused.expert;
    button.setAttribute("aria-pressed", String(here));
  }
}

// Beginning -----------------------------------------------------------------------------------------------------------------

function listen() {
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const words = $("words").value.trim();
    if (words) goTo({ words });
  });
  $("choose").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    if ($("file").files.length) askFile($("file").files[0]);
    $("file").value = "";
  });
  $("random").addEventListener("click", () => goTo({ picture: Math.floor(Math.random() * about.gallery.images) }));
  $("close").addEventListener("click", closeExpert);
  window.addEventListener("hashchange", askAddress);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") closeExpert();
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) askFile(event.clipboardData.files[0]);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    askFile(event.dataTransfer.files[0]);
  });
  for (const choice of document.querySelectorAll("[name=slots]")) choice.addEventListener("change", () => asked && ask(asked));
  for (const choice of document.querySelectorAll("[name=mark]")) {
    choice.addEventListener("change", () => {
      document.querySelectorAll(".patches").forEach((grid, place) => mark(grid, answer.layers[place]));
    });
  }
  const strength = () => document.documentElement.style.setProperty("--strength", $("strength").value / 100);
  $("strength").addEventListener("input", strength);
  strength();
}

async function begin() {
  listen();
  try {
    about = await fetched("api/about");
  } catch (problem) {
    tell(problem.message, true);
    return;
  }
  document.title = `${about.name} – explorer`;
  $("name").textContent = about.name;
  const { images, texts, what } = about.gallery;
  const layers = Object.keys(about.layers).length;
  const experts = layers ? `${plural(layers, "layer")} of ${Object.values(about.layers)[0]} experts` : "no experts";
  $("gallery").textContent = `${about.model}, ${experts} · ${plural(images, "picture")} and ${plural(texts, "text")} of ${what}`;
  $("suggested").replaceChildren(...about.suggested.map(textButton));
  $("try").hidden = about.suggested.length === 0;
  $("slots").hidden = about.competing < 2;
  $("training").textContent = `as in training, among ${about.competing} pairs`;
  document.body.classList.toggle("small-pictures", about.image_size < 128);
  if (location.hash.length > 1) askAddress();
  else location.replace("#picture=0");
}

begin();
