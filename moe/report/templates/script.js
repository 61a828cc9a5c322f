const tip = document.getElementById("tip");
document.addEventListener("mousemove", event => {
  const owner = event.target.closest("[data-tip]");
  tip.hidden = owner === null;
  if (tip.hidden) return;
  tip.textContent = owner.dataset.tip;
  tip.style.left = Math.max(0, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = Math.max(0, Math.min(event.clientY + 18, innerHeight - tip.offsetHeight - 8)) + "px";
});
for (const select of document.querySelectorAll("select.layers")) {
  const passages = select.closest(".panel").querySelectorAll(".passage");
  const show = () => passages.forEach((passage, index) => { passage.hidden = index !== select.selectedIndex; });
  select.addEventListener("change", show);
  show();  // a browser that returns to the page restores the selection
}
