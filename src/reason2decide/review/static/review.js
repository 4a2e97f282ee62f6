"use strict";
// Keys for what the page's own buttons and fields do; everything works without this script, too.
const typing = (element) => element.matches("textarea, select, input:not([type=radio])");
const press = (selector) => document.querySelector(selector)?.click();
const focus = (selector) => document.querySelector(selector)?.focus();
const keys = {
  Enter: () => press("button[name=action][value=decide], button[name=action][value=first]"),
  d: () => press("button[name=action][value=defer]"),
  s: () => press("button[name=action][value=skip]"),
  u: () => press("#undo"),
  n: () => press("#next"),
  e: () => focus("textarea[name=rationale]"),
  c: () => focus("textarea[name=comment]"),
  "?": () => document.querySelector("#keys")?.toggleAttribute("hidden"),
};
// Somebody who speaks to the computer, or whose hand slips, can switch single keys off.
const OFF = "review-keys-off";
const box = document.querySelector("#keys-off");
if (box) {
  box.checked = localStorage.getItem(OFF) !== null;
  box.addEventListener("change", () => box.checked ? localStorage.setItem(OFF, "1") : localStorage.removeItem(OFF));
}
document.addEventListener("keydown", (event) => {
  if (event.key !== "?" && localStorage.getItem(OFF) !== null) return;
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (typing(event.target)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "Enter" && event.target.matches("a, button, summary")) return;
  const choice = /^[1-9]$/.test(event.key) ? document.querySelectorAll("input[name=label]")[event.key - 1] : null;
  if (choice) choice.checked = true;
  else if (!Object.hasOwn(keys, event.key)) return;
  else keys[event.key]();
  event.preventDefault();
});
// What was typed and not sent is not left behind unasked.
const unsaved = (form) =>
  form.hasAttribute("data-unsaved") ||
  [...form.querySelectorAll("textarea, input[type=text]")].some((field) => field.value !== field.defaultValue);
let leaving = false;
addEventListener("beforeunload", (event) => {
  if (!leaving && [...document.querySelectorAll("form.answer")].some(unsaved)) event.preventDefault();
});
// A second press while the first is on its way would be a second answer.
for (const form of document.querySelectorAll("form")) {
  let sent = false;
  form.addEventListener("submit", (event) => {
    if (sent) event.preventDefault();
    sent = true;
    leaving = form.matches(".answer");
  });
}
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
