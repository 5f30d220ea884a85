"use strict";
const box = document.getElementById("browse"), bar = box.querySelector(".bar");
const cards = [...box.querySelectorAll(".case")], selects = [...bar.querySelectorAll("select")];
const [low, high] = bar.querySelectorAll("input"), [back, forth] = bar.querySelectorAll("button");
let found = cards, place = 0;

function step(by) {
  place = Math.max(0, Math.min(found.length - 1, place + by));
  for (const card of cards) card.hidden = card !== found[place];
  bar.querySelector("output").textContent = found.length ? `${place + 1} of ${found.length}` : "no such study";
}

function filter() {
  const least = Number(low?.value || 0), most = Number(high?.value || 1);
  found = cards.filter((card) => {
    const tags = card.dataset.tags.split("|"), score = Number(card.dataset.score ?? 0);
    return score >= least && score <= most && selects.every((select) => !select.value || tags.includes(select.value));
  });
  place = 0;
  step(0);
}

bar.addEventListener("input", filter);
back.addEventListener("click", () => step(-1));
forth.addEventListener("click", () => step(1));
box.addEventListener("keydown", (event) => {
  const by = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 }[event.key];
  if (!by || event.ctrlKey || event.altKey || event.metaKey || event.target.matches("select, input")) return;
  event.preventDefault();
  step(by);
  found[place]?.focus();
});
box.classList.add("stepping");
bar.hidden = false;
filter();
