"use strict";
// The case browser. Data enters the page as text, never as markup. If anything needed here is missing, nothing happens,
// and the page keeps the cases chosen for print.
(async () => {
  const CASES_A_PAGE = 20;
  const element = (id) => document.getElementById(id);

  const stored = Uint8Array.from(atob(element("data").textContent), (character) => character.charCodeAt(0));
  const unpacked = new Blob([stored]).stream().pipeThrough(new DecompressionStream("gzip"));
  const { labels, columns } = JSON.parse(await new Response(unpacked).text());
  element("data").remove();
  const cases = columns.id.map((_, i) =>
    Object.fromEntries(Object.entries(columns).map(([name, column]) => [name, column[i]])),
  );
  for (const one of cases) {
    one.confidence = one.bars.find(([label]) => label === one.predicted)?.[1] ?? null;
    const named = [one.gold, one.predicted].map((label) => labels[label] ?? "");
    one.words = [one.id, one.text, one.rationale, one.gold_rationale, ...named].join("\n").toLowerCase();
  }

  const form = element("filters");
  let page = 0;

  const shownCases = (chosen) => {
    const search = wordsOf(chosen);
    const [least, most] = ["least", "most"].map((name) => parseFloat(chosen.get(name)));
    const narrowed = least > 0 || most < 100;
    const slices = [...form.querySelectorAll("[data-column]")].map((select) => [select.dataset.column, select.value]);
    const same = (name, value) => !chosen.get(name) || Number(chosen.get(name)) === value;
    const found = cases.filter(
      (one) =>
        (chosen.get("verdict") === "all" || Number(chosen.get("verdict")) === one.verdict) &&
        same("gold", one.gold) &&
        same("predicted", one.predicted) &&
        (!chosen.get("doubted") || one.doubted) &&
        // A comparison with an empty field is false, so an empty limit does not apply.
        (!narrowed || (one.confidence !== null && !(one.confidence < least) && !(one.confidence > most))) &&
        slices.every(([column, value]) => !value || one.slices[column] === value) &&
        search.every((word) => one.words.includes(word)),
    );
    const sign = { sure: -1, unsure: 1 }[chosen.get("order")];
    return sign ? found.sort((a, b) => sign * (a.confidence - b.confidence)) : found;
  };

  const wordsOf = (chosen) => chosen.get("search").toLowerCase().split(/\s+/).filter(Boolean);

  const article = (one) => {
    const root = element("blank").content.cloneNode(true);
    const part = (name) => root.querySelector(`[data-part="${name}"]`);
    const put = (name, text) => {
      part(name).textContent = text;
      part(name).hidden = !text;
    };
    const either = (name, text) => {
      if (!part(name)) return;
      put(name, text);
      part(`no-${name}`).hidden = Boolean(text);
    };
    root.firstElementChild.className = `case ${["right", "wrong", "unanswered"][one.verdict]}`;
    put("id", one.id);
    put("verdict", ["✓ Right: ", "✗ Wrong: ", "✗ No valid answer"][one.verdict] + (labels[one.predicted] ?? ""));
    put("gold", one.verdict ? `Gold: ${labels[one.gold]}` : "");
    const names = [...form.querySelectorAll("[data-column]")].map((select) => select.dataset.name);
    put("slices", one.slices.map((value, i) => `${names[i]}: ${value}`).join(" · "));
    let end = 0;
    const parts = one.parts.map((length, i) => {
      const node = i % 2 ? document.createElement("mark") : document.createTextNode("");
      node.textContent = one.text.slice(end, (end += length));
      return node;
    });
    part("text").replaceChildren(...parts);
    const bars = part("bars");
    const blank = bars.firstElementChild;
    bars.replaceChildren(...one.bars.map((bar) => barItem(blank.cloneNode(true), bar, one)));
    part("no-bars").hidden = one.bars.length > 0;
    put("others", one.others ? `${one.others} less likely choices are not shown.` : "");
    either("rationale", one.rationale);
    either("gold-rationale", one.gold_rationale);
    part("doubt").hidden = !one.doubted;
    return root;
  };

  const barItem = (item, [label, percent], one) => {
    item.className = `${label === one.predicted ? "chosen" : ""}${label === one.gold ? " gold" : ""}`;
    item.querySelector("bdi").textContent = labels[label];
    if (label !== one.gold) item.querySelector(".tag").remove();
    item.querySelector(".percent").textContent = `${percent.toFixed(1)} %`;
    item.querySelector(".rail span").style.width = `${percent}%`;
    return item;
  };

  // Highlight the search words, if the browser can do so without changing the text.
  const point = (words) => {
    if (!CSS.highlights) return;
    const ranges = [];
    const texts = document.createTreeWalker(element("list"), NodeFilter.SHOW_TEXT);
    while (words.length && texts.nextNode()) {
      const text = texts.currentNode.data.toLowerCase();
      if (text.length !== texts.currentNode.data.length) continue;
      for (const word of words) {
        for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, at + word.length)) {
          const range = new Range();
          range.setStart(texts.currentNode, at);
          range.setEnd(texts.currentNode, at + word.length);
          ranges.push(range);
        }
      }
    }
    CSS.highlights.set("found", new Highlight(...ranges));
  };

  const show = () => {
    const chosen = new FormData(form);
    const found = shownCases(chosen);
    const pages = Math.max(Math.ceil(found.length / CASES_A_PAGE), 1);
    page = Math.min(page, pages - 1);
    const first = page * CASES_A_PAGE;
    const many = (n) => n.toLocaleString("en");
    element("list").replaceChildren(...found.slice(first, first + CASES_A_PAGE).map(article));
    element("found").textContent = found.length
      ? `${many(found.length)} of ${many(cases.length)} cases` +
        (pages > 1 ? `, ${many(first + 1)} to ${many(Math.min(first + CASES_A_PAGE, found.length))} shown` : "")
      : "No case matches. Clear a filter to see more.";
    element("page").textContent = `Page ${many(page + 1)} of ${many(pages)}`;
    element("previous").disabled = page === 0;
    element("next").disabled = page === pages - 1;
    document.querySelector(".pager").hidden = pages === 1;
    point(wordsOf(chosen));
  };

  const renew = () => {
    page = 0;
    show();
  };
  const turn = (step) => {
    page += step;
    show();
    element("found").focus({ preventScroll: true });
    element("found").scrollIntoView();
  };
  form.addEventListener("input", renew);
  form.addEventListener("reset", () => setTimeout(renew));
  form.addEventListener("submit", (event) => event.preventDefault());
  element("previous").addEventListener("click", () => turn(-1));
  element("next").addEventListener("click", () => turn(1));

  for (const cell of document.querySelectorAll(".matrix [data-gold]:not(.none)")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...cell.childNodes);
    button.addEventListener("click", () => {
      form.reset();
      form.elements.gold.value = cell.dataset.gold;
      form.elements.predicted.value = cell.dataset.predicted;
      setTimeout(() => {
        element("found").focus({ preventScroll: true });
        form.scrollIntoView();
      });
    });
    cell.append(button);
  }

  element("browser").hidden = false;
  document.documentElement.classList.add("live");
  show();
})();
