"use strict";
// Sends the form as the request below it, and shows the answer. Whatever comes back enters the page as text.
for (const form of document.querySelectorAll("form")) {
  const output = form.querySelector("output");
  const line = (text, kind) => {
    const part = document.createElement("p");
    part.textContent = text;
    part.className = kind ?? "";
    output.append(part);
  };
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    output.replaceChildren();
    const given = Object.fromEntries(new FormData(form));
    const body = { ...JSON.parse(form.dataset.body), state: "columns" in form.dataset ? given : given.text };
    try {
      const response = await fetch("/v1/systemone", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body),
      });
      const reply = await response.json();
      if (!response.ok) return line(typeof reply.detail === "string" ? reply.detail : reply.detail[0].msg, "warn");
      const answer = reply.answers.decision;
      line(`${answer.choice}${answer.deferred ? " (a person should decide)" : ""}`);
      if (answer.rationale) line(answer.rationale);
      if (answer.reason_supports === false) line("⚠ This reason does not support the decision.", "warn");
      if (reply.text.cut) line(`Only ${reply.text.tokens_read} of ${reply.text.tokens} tokens were read.`, "warn");
      const table = document.createElement("table");
      for (const [label, p] of Object.entries(answer.probabilities)) {
        const row = table.insertRow();
        row.insertCell().textContent = label;
        row.insertCell().textContent = `${(100 * p).toFixed(1)} %`;
      }
      output.append(table);
    } catch (error) {
      line(String(error), "warn");
    }
  });
}
