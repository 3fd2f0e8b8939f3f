// Copies a secret or an example. Without this script, people select the text themselves.
for (const button of document.querySelectorAll("[data-copy]")) {
  if (!navigator.clipboard) continue;
  button.hidden = false;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    await navigator.clipboard.writeText(source.value ?? source.textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}

// Only the beginning of an API key is searched for: a whole key must not get into the address of a page.
document.querySelector("form.filter")?.addEventListener("submit", (event) => {
  const search = event.target.elements.search;
  if (search?.value.trim().startsWith("apx_live_sk_")) search.value = search.value.trim().slice(0, 16);
});

// The first wrong field, although the page may name another one for the focus.
document.querySelector("[aria-invalid]")?.focus();
