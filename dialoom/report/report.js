// Choosing a tree and walking it by keys. Reads the page, writes only text and attributes; without it all trees are a list.
(() => {
  "use strict";
  const find = (id) => document.getElementById(id);
  const trees = [...document.querySelectorAll(".tree")];
  if (!trees.length) return;
  const choice = find("choice"), filter = find("filter");
  const kindsOf = (tree) => JSON.parse(tree.dataset.kinds);
  document.documentElement.classList.add("js");
  document.querySelector(".tools").hidden = false;

  const show = (tree) => {
    for (const one of trees) one.classList.toggle("current", one === tree);
    if (tree) { tree.open = true; choice.value = tree.id; }
    find("before").disabled = choice.selectedIndex <= 0;
    find("after").disabled = choice.selectedIndex >= choice.options.length - 1;
  };
  const fill = () => {
    const wanted = filter.value;
    choice.replaceChildren(...trees
      .filter((tree) => !wanted || (wanted === "*" ? kindsOf(tree).length : kindsOf(tree).includes(wanted.slice(1))))
      .map((tree) => {
        const text = tree.querySelector("summary").textContent.trim().replace(/\s+/g, " ");
        return new Option(text.length > 110 ? text.slice(0, 109) + "…" : text, tree.id);
      }));
    show(find(choice.value));
  };
  const step = (by) => { choice.selectedIndex += by; show(find(choice.value)); };
  const current = () => document.querySelector(".tree.current");
  const openAll = (open) => { for (const turn of current().querySelectorAll(".turn")) turn.open = open; };

  filter.addEventListener("change", fill);
  choice.addEventListener("change", () => show(find(choice.value)));
  find("before").addEventListener("click", () => step(-1));
  find("after").addEventListener("click", () => step(1));
  find("open").addEventListener("click", () => openAll(true));
  find("close").addEventListener("click", () => openAll(false));

  const jump = () => {
    const turn = find(decodeURIComponent(location.hash.slice(1)));
    const tree = turn && turn.closest(".tree");
    if (!tree) return;
    filter.value = "";
    fill();
    show(tree);
    for (let at = turn; at && at !== tree; at = at.parentElement.closest("details")) at.open = true;
    setTimeout(() => {   // after the browser's own jump, which would take the focus away again
      turn.firstElementChild.focus();
      turn.scrollIntoView({ block: "nearest" });
    });
  };
  window.addEventListener("hashchange", jump);

  document.addEventListener("keydown", (event) => {
    const here = event.target.closest && event.target.closest(".turn > summary");
    if (!here || event.altKey || event.ctrlKey || event.metaKey) return;
    const turn = here.parentElement;
    const seen = [...turn.closest(".tree").querySelectorAll(".turn > summary")]
      .filter((one) => !one.parentElement.parentElement.closest("details:not([open])"));
    const at = seen.indexOf(here);
    let next;
    if (event.key === "ArrowDown") next = seen[at + 1];
    else if (event.key === "ArrowUp") next = seen[at - 1];
    else if (event.key === "Home") next = seen[0];
    else if (event.key === "End") next = seen[seen.length - 1];
    else if (event.key === "ArrowRight") { if (turn.open) next = turn.querySelector(".turn > summary"); else turn.open = true; }
    else if (event.key === "ArrowLeft") {
      const above = turn.parentElement.closest(".turn");
      if (turn.open && turn.querySelector(".turn")) turn.open = false;
      else if (above) next = above.firstElementChild;
    } else return;
    event.preventDefault();
    if (next) next.focus();
  });

  fill();
  jump();
})();
