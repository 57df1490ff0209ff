// The second page: filters and search on top, the list of what passes, and the chosen dialogue (in both runs, if two).
import { useMemo, useState } from "preact/hooks";
import { about, everyTree, runs, two } from "./data.js";
import { List } from "./list.jsx";
import { EMPTY, colorOf, counterpart, facets, filters, found, goToTree, goToTurn, mode, place, terms } from "./model.js";
import { number } from "./plots.jsx";
import { Marked, excerpt } from "./text.jsx";
import { InFull, Private, Tree } from "./tree.jsx";

const MOST_CHOICES = 200;   // of more briefs or strategies than that one types a part

const set = (name) => (event) => { filters.value = { ...filters.value, [name]: event.currentTarget.value }; };
const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;

export function Dialogues() {
  const { trees, turns } = found.value;
  const words = useMemo(() => terms(filters.value.q), [filters.value.q]);
  const { run, key } = place.value;
  const tree = runs[run]?.trees.value.get(key) ?? (key ? null : trees[0]?.tree) ?? null;   // at first the first
  const turnId = place.value.turn ?? (key ? null : trees[0]?.hits[0]?.id ?? null);
  const other = useMemo(() => counterpart(tree), [tree, everyTree.value]);
  const listed = mode.value === "turns" ? turns : trees;
  const current = useMemo(() => (mode.value === "turns" ? turns.findIndex((turn) => turn.id === turnId && turn.tree === tree)
    : trees.findIndex((one) => one.tree === tree)), [listed, tree, turnId]);
  const hits = useMemo(() => new Set(found.value.searching ? trees.flatMap((one) => (one.tree === tree || one.tree === other ? one.hits : [])) : []), [trees, tree, other]);
  const pick = (item, byMouse) => {
    if (mode.value === "turns") goToTurn(item);
    else if (item.hits.length) goToTurn(item.hits[0]);
    else goToTree(item.tree);
    if (byMouse && matchMedia("(max-width: 48rem)").matches) setTimeout(() => document.getElementById("panes").scrollIntoView());
  };
  const enter = () => document.querySelector("#panes [role=treeitem][tabindex='0']")?.focus();
  const step = (by) => {
    const item = listed[current + by];
    if (!item) return;
    pick(item);
    setTimeout(enter);
  };
  const leave = () => document.getElementById("found").focus();
  return (
    <div class="dialogues">
      <Filters />
      <List id="found" items={listed} current={current} height={mode.value === "turns" ? 72 : 64} label={mode.value === "turns" ? "turns" : "dialogues"}
        onPick={pick} onEnter={enter} row={(item) => (mode.value === "turns" ? <TurnRow turn={item} words={words} /> : <TreeRow {...item} words={words} />)} />
      <div id="panes" class={other ? "panes pair" : "panes"}>
        {!tree && <p class="soft empty">{runs.every((one) => one.ready.value) ? (listed.length ? "Choose a dialogue in the list: by a click, or with the arrow keys." : "No dialogue passes the filters.") : "Reading the dialogues …"}</p>}
        {tree && two && !other && <p class="soft">The other run has no dialogue about this.</p>}
        {[tree, other].filter(Boolean).sort((one, next) => one.run.number - next.run.number).map((one) => (
          <Pane key={`${one.run.letter} ${one.key}`} tree={one} chosen={one === tree ? turnId : null} words={words} hits={hits} onLeave={leave} onStep={step} />
        ))}
        {tree && <p class="keys">Keys: <kbd>↑</kbd> <kbd>↓</kbd> move, <kbd>→</kbd> opens or goes in, <kbd>←</kbd> closes or goes out, <kbd>Shift</kbd>+<kbd>↑</kbd> <kbd>↓</kbd> other replies to the same turn, <kbd>n</kbd> <kbd>p</kbd> next and previous in the list, <kbd>Esc</kbd> to the list.</p>}
      </div>
    </div>
  );
}

function Pane({ tree, chosen, words, hits, onLeave, onStep }) {
  const turn = tree.turns.find((one) => one.id === chosen);
  return (
    <section class="pane" aria-label={two ? `dialogue in run ${tree.run.letter}` : "dialogue"}>
      <p class="soft small">{two && <b class={`letter ${tree.run.letter}`}>{tree.run.letter}</b>} {[two && tree.run.name, tree.part !== "trees" && tree.part, tree.scenario, plural(tree.turns.length, "turn"), tree.pairs.length && plural(tree.pairs.length, "pair")].filter(Boolean).join(" · ")}</p>
      <h2 class="opening" dir="auto">{tree.opening ? <Marked text={tree.opening} words={words} /> : <span class="soft">(no opening: the first turn begins)</span>}</h2>
      {tree.dropped.map((reason) => <p key={reason} class="note">The whole dialogue was dropped: {reason}</p>)}
      <Private tree={tree} words={words} />
      {turn && <details class="fold"><summary>The chosen turn in full</summary><InFull turn={turn} /></details>}
      <Tree tree={tree} chosen={chosen} words={words} hits={hits} onChoose={goToTurn} onLeave={onLeave} onStep={onStep} label={`turns of the dialogue${two ? ` in run ${tree.run.letter}` : ""}`} />
    </section>
  );
}

function TreeRow({ tree, hits, hidden, words }) {
  const head = tree.opening || tree.turns[0]?.text || tree.id;
  return (
    <>
      <span class="one" dir="auto">{two && <b class={`letter ${tree.run.letter}`}>{tree.run.letter}</b>}<Marked text={hits.length && words.length ? excerpt(hits[0].text, words) : excerpt(head, [])} words={words} /></span>
      <span class="two">
        {hits.length > 0 && <span class="chip hit">{plural(hits.length, "hit")}</span>}
        {hidden && <span class="chip hit">in the private part</span>}
        {tree.part !== "trees" && <span class="chip">{tree.part}</span>}
        {tree.kinds.map((kind) => <span key={kind} class="chip chosen">{kind}</span>)}
        <span>{plural(tree.turns.length, "turn")}</span>{tree.roots.length > 0 && <span dir="auto">{tree.roots[0].speaker} opens</span>}
      </span>
    </>
  );
}

function TurnRow({ turn, words }) {
  const { score } = filters.value;
  return (
    <>
      <span class="one" dir="auto"><Marked text={excerpt(turn.text, words)} words={words} /></span>
      <span class="two"><b class={`who s${colorOf(turn.speaker)}`}>{two && `${turn.tree.run.letter} `}{turn.speaker}</b>
        {turn.notes.strategy && <span class="chip">{turn.notes.strategy}</span>}
        {turn.notes.brief && <span class="chip">{turn.notes.brief}</span>}
        {score && <span>{score} {number(turn.scores[score])}</span>}
        {[...new Set(turn.marks.map((mark) => mark.side))].map((side) => <span key={side} class={`chip ${side}`}>{side}</span>)}
        {turn.dropped.map((reason) => <span key={reason} class="chip lost">{reason}</span>)}
        <span dir="auto">{excerpt(turn.tree.opening, [], 60)}</span></span>
    </>
  );
}

const Choice = ({ label, name, children }) => (
  <label><span>{label}</span> <select value={filters.value[name]} onChange={set(name)}>{children}</select></label>
);

function Filters() {
  const { parts, speakers, scores, pairs, dropped, notes } = facets.value;
  const { trees, turns } = found.value;
  const state = filters.value;
  const used = Object.entries(state).filter(([name, value]) => value && name !== "q" && name !== "sort").length;
  const [open, setOpen] = useState(used > 0);
  const [low, high] = scores.get(state.score) ?? [];
  return (
    <search class="filters">
      <div class="search">
        <label class="sr" for="search">Search the turns</label>
        <input id="search" type="search" placeholder="Search: words, or “words in a row” in quotation marks" autocomplete="off" spellcheck={false}
          value={state.q} onInput={set("q")} onKeyDown={(event) => { if (event.key === "Enter" || event.key === "ArrowDown") { event.preventDefault(); document.getElementById("found").focus(); } }} />
        <div class="switch" role="group" aria-label="What the list holds">
          {["dialogues", "turns"].map((name) => <button key={name} type="button" aria-pressed={mode.value === name} onClick={() => { mode.value = name; }}>{name}</button>)}
        </div>
      </div>
      <details class="fold" open={open} onToggle={(event) => setOpen(event.currentTarget.open)}><summary>Filters{used > 0 && ` (${used} set)`}</summary>
        <div class="choices">
          {two && <Choice label="Run" name="run"><option value="">both</option>{runs.map((run) => <option key={run.letter} value={run.letter}>{run.letter}: {run.name}</option>)}</Choice>}
          {parts.size > 1 && <Choice label="From" name="part"><option value="">everywhere</option>{[...parts].map(([name, count]) => <option key={name} value={name}>{name === "trees" ? "the run itself" : name} ({number(count)})</option>)}</Choice>}
          <Choice label="Speaker" name="speaker"><option value="">anyone</option>{[...speakers].map(([name, count]) => <option key={name} value={name}>{name} ({number(count)})</option>)}</Choice>
          {pairs.size > 0 && <Choice label="Pairs" name="pair"><option value="">with or without</option><option value="*">in any pair</option>{[...pairs].map(([name, count]) => <option key={name} value={`=${name}`}>{name} (in {number(count)})</option>)}</Choice>}
          {pairs.size > 0 && <Choice label="Side" name="side"><option value="">either</option><option value="chosen">chosen</option><option value="rejected">rejected</option></Choice>}
          {scores.size > 0 && <Choice label="Score" name="score"><option value="">any</option>{[...scores.keys()].map((name) => <option key={name} value={name}>{name}</option>)}</Choice>}
          {state.score && <>
            <label><span>from</span> <input type="number" step="any" value={state.min} placeholder={number(low ?? 0)} onInput={set("min")} /></label>
            <label><span>to</span> <input type="number" step="any" value={state.max} placeholder={number(high ?? 0)} onInput={set("max")} /></label>
            <Choice label="Turns by score" name="sort"><option value="">as they come</option><option value="down">highest first</option><option value="up">lowest first</option></Choice>
          </>}
          {dropped.size > 0 && <Choice label="Dropped" name="dropped"><option value="">kept or dropped</option><option value="kept">kept</option><option value="*">dropped</option>{[...dropped].map(([name, count]) => <option key={name} value={`=${name}`}>{name} ({number(count)})</option>)}</Choice>}
          {notes.size > 0 && notes.size <= MOST_CHOICES && <Choice label="Brief or strategy" name="note"><option value="">any</option>{[...notes].map(([name, count]) => <option key={name} value={name}>{name} ({number(count)})</option>)}</Choice>}
          {notes.size > MOST_CHOICES && <label><span>Brief or strategy</span> <input class="wide" type="search" list="noted" value={state.note} placeholder={`part of one of ${number(notes.size)}`} onInput={set("note")} />
            <datalist id="noted">{[...notes].sort(([, one], [, other]) => other - one).slice(0, MOST_CHOICES).map(([name]) => <option key={name} value={name} />)}</datalist></label>}
          {used > 0 && <button type="button" onClick={() => { filters.value = { ...EMPTY, q: state.q }; }}>Clear filters</button>}
        </div>
      </details>
      <p class="status" role="status">{plural(trees.length, "dialogue")}, {plural(turns.length, "turn")}{found.value.searching ? " found" : ""}. <LeftOut /></p>
    </search>
  );
}

/** What a page does not hold, said plainly. */
function LeftOut() {
  return runs.map((run) => {
    const parts = run.overview.value?.parts ?? [];
    const sum = (name) => parts.reduce((total, part) => total + part[name], 0);
    const missing = sum("trees") - sum("shown");
    return missing > 0 && <b key={run.letter}>{two && `${run.letter}: `}{number(missing)} of {number(sum("trees"))} dialogues are left out
      here{about.live ? " (--limit holds more)" : "; `dialoom view` with a higher --limit holds them"}. </b>;
  });
}
