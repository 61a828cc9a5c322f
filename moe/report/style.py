"""The page's style and its script. Neither has `<` or `&`, so the page is well-formed as HTML and as XML."""

STYLE = """
:root { --ink: #1d2530; --soft: #566072; --rule: #d9dee6; --paper: #fff; --wash: #f5f7fa; --alarm: #a3122a; }
* { box-sizing: border-box; }
html { scroll-padding-top: 4rem; }
body { margin: 0; color: var(--ink); background: var(--paper); font: 15px/1.5 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
header { padding: 20px 24px 0; }
main { padding: 0 24px 60px; }
h1 { font-size: 24px; margin: 0 0 10px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 36px 0 4px; padding-top: 14px; border-top: 1px solid var(--rule); }
section:first-child h2 { margin-top: 8px; border-top: 0; }
h3 { font-size: 15px; margin: 18px 0 6px; overflow-wrap: anywhere; }
nav { position: sticky; top: 0; z-index: 5; display: flex; flex-wrap: wrap; gap: 2px 16px; padding: 6px 24px;
  font-size: 14px; background: #fffffff2; border-bottom: 1px solid var(--rule); }
nav a { color: #0b5cad; text-decoration: none; }
nav a:hover { text-decoration: underline; }
.about { max-width: 100ch; color: var(--soft); }
.row { display: flex; flex-wrap: wrap; gap: 14px 18px; align-items: flex-start; margin-top: 10px; }
.columns { display: grid; gap: 14px 18px; margin-top: 10px; overflow-x: auto; align-items: start; }
figure { width: fit-content; margin: 0; padding: 8px; border: 1px solid var(--rule); border-radius: 6px; }
.panel { flex: 1 1 520px; min-width: 0; max-width: 100%; }
.nothing { width: 422px; margin: 0; padding: 24px; color: var(--soft); border: 1px dashed var(--rule);
  border-radius: 6px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 8px 0; font-size: 13px; }
.key { white-space: nowrap; }
.note { color: var(--soft); }
.swatch { display: inline-block; width: 12px; height: 12px; margin-right: 6px; border-radius: 2px; vertical-align: -1px;
  border: 1px solid #0002; }
.leaks { color: var(--alarm); font-weight: 600; }
.warning { margin: 10px 0; padding: 10px 14px; color: var(--alarm); background: #fdeef0; border: 1px solid #e8b4bc;
  border-left: 6px solid var(--alarm); border-radius: 4px; }
svg { display: block; max-width: 100%; height: auto; font-family: inherit; }
.title { font-size: 13px; font-weight: 600; fill: var(--ink); }
.label { font-size: 12px; fill: var(--soft); }
.tick { font-size: 11px; fill: var(--soft); }
.cell { font-size: 9.5px; fill: var(--ink); text-anchor: middle; pointer-events: none; }
.light { fill: #fff; }
.middle { text-anchor: middle; }
.end { text-anchor: end; }
.axis { stroke: #8b94a3; fill: none; }
.grid { stroke: #e6eaf0; fill: none; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.scroll { overflow: auto; max-height: 560px; }
table { border-collapse: collapse; font-size: 13.5px; }
th, td { padding: 4px 12px 4px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; }
.facts td { max-width: 46ch; overflow-wrap: anywhere; }
.facts th[scope=row] { color: var(--soft); font-weight: 400; white-space: nowrap; }
.chip { display: inline-block; margin: 1px 8px 1px 0; white-space: nowrap; }
code, .code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.chip code { padding: 1px 4px; background: var(--wash); border: 1px solid var(--rule); border-radius: 3px;
  font-size: 12.5px; }
.chip small { margin-left: 3px; color: var(--soft); }
.passage { max-height: 620px; overflow: auto; margin-top: 8px; }
.passage[hidden] { display: none; }
.code { margin-bottom: 10px; padding: 8px 10px; border: 1px solid var(--rule); border-radius: 6px; font-size: 13px;
  line-height: 1.65; white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 4; }
.t { border-radius: 2px; box-shadow: inset 0 0 0 0.5px #0001; }
.legend .t { padding: 1px 8px; }
.code .t:hover { outline: 2px solid var(--ink); }
.n0 { background: #f3d6dc; color: #7a1022; }
.n1 { background: #eef4fb; }
.n2 { background: #c9def2; }
.n3 { background: #8fbbe0; }
.n4 { background: #3f86c4; color: #fff; }
.n5 { background: #0a4a86; color: #fff; }
details { margin-top: 8px; font-size: 14px; }
pre { max-height: 420px; overflow: auto; padding: 10px; background: var(--wash); font-size: 12.5px; }
select { font: inherit; padding: 2px 6px; }
#tip { position: fixed; z-index: 9; max-width: 420px; padding: 4px 9px; color: #fff; background: #1d2530;
  border-radius: 4px; font-size: 13px; pointer-events: none; }
#tip[hidden] { display: none; }
"""

SCRIPT = """
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
  show();  // a browser that comes back to the page remembers the choice
}
"""
