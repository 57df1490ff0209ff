// One dialogue tree, to be walked by mouse and keys: its shape as a drawing, its turns as an ARIA tree, one turn in full.
import { useEffect, useRef, useState } from "preact/hooks";
import { colorOf } from "./model.js";
import { Columns, number } from "./plots.jsx";
import { Marked, plain } from "./text.jsx";

const ALL_OPEN = 200;    // trees of more turns begin with only the way to their pairs open
const AT_ONCE = 300;     // turns drawn; the rest on demand
const MAX_MAP = 80;      // a drawing of more turns than this is a blot
const SAID_APART = new Set(["brief", "answer", "model", "strategy", "rejected", "action"]);

export const verdictOf = (turn) => (turn.scores.correct === undefined ? "" : turn.scores.correct > 0 ? "right" : "wrong");
const childrenOf = (tree, turn) => (turn ? turn.children : tree.roots);
const parentOf = (turn) => turn.tree.turns[turn.parent];

function* pathTo(turn) {
  for (let at = turn; at; at = parentOf(at)) yield at;
}

/** Which turns begin closed: none of a small tree; of a large one all that lead to no pair. */
function closedAtFirst(tree) {
  if (tree.turns.length <= ALL_OPEN) return new Set();
  const ahead = new Set(tree.turns.filter((turn) => turn.marks.length).flatMap((turn) => [...pathTo(turn)]));
  return new Set(tree.turns.filter((turn) => turn.children.length && !ahead.has(turn)).map((turn) => turn.id));
}

/** The turns that are seen, as they are read, each with its level, its place among its siblings and the forks above. */
function seen(tree, closed) {
  const rows = [];
  const stack = tree.roots.map((turn, at) => ({ turn, level: 1, forks: tree.roots.length > 1 ? 1 : 0, at: at + 1, of: tree.roots.length })).reverse();
  while (stack.length) {
    const row = stack.pop();
    rows.push(row);
    const { children } = row.turn;
    if (closed.has(row.turn.id)) continue;
    for (let at = children.length; at >= 1; at--) {
      stack.push({ turn: children[at - 1], level: row.level + 1, forks: row.forks + (children.length > 1 ? 1 : 0), at, of: children.length });
    }
  }
  return rows;
}

/** Scroll the pane, or on a phone the page, and never both. */
function bringIntoSight(item) {
  const panes = item.closest("#panes");
  if (panes.scrollHeight <= panes.clientHeight || getComputedStyle(panes).overflowY === "visible") {
    if (document.activeElement === item) item.scrollIntoView({ block: "nearest" });
    return;
  }
  const outer = panes.getBoundingClientRect(), inner = item.getBoundingClientRect();
  if (inner.top < outer.top) panes.scrollTop -= outer.top - inner.top + 8;
  else if (inner.bottom > outer.bottom) panes.scrollTop += Math.min(inner.bottom - outer.bottom, inner.top - outer.top) + 8;
}

/** Args: tree; chosen: id of a turn or null; onChoose(turn); words: what was searched for; hits: turns to mark. */
export function Tree({ tree, chosen, onChoose, words, hits, label, onLeave, onStep }) {
  const [closed, setClosed] = useState(() => closedAtFirst(tree));
  const [most, setMost] = useState(AT_ONCE);
  const items = useRef(new Map());
  const byKeys = useRef(false);
  const current = tree.turns.find((turn) => turn.id === chosen) ?? tree.roots[0];
  const hidden = current ? [...pathTo(parentOf(current))].filter((turn) => closed.has(turn.id)) : [];
  const shut = hidden.length ? new Set([...closed].filter((id) => !hidden.some((turn) => turn.id === id))) : closed;
  const rows = seen(tree, shut);
  const at = rows.findIndex((row) => row.turn === current);
  const drawn = rows.slice(0, Math.max(most, at + 1));

  useEffect(() => {
    if (hidden.length) setClosed(shut);
  });
  useEffect(() => {
    const item = items.current.get(chosen);
    if (!item) return;
    if (byKeys.current) item.focus({ preventScroll: true });
    bringIntoSight(item);
    byKeys.current = false;
  }, [chosen, tree]);

  const set = (turns, close) => setClosed(new Set([...closed].filter((id) => !turns.some((turn) => turn.id === id))
    .concat(close ? turns.filter((turn) => turn.children.length).map((turn) => turn.id) : [])));
  const choose = (turn) => {
    if (!turn) return;
    byKeys.current = true;
    onChoose(turn);
    if (turn === current) items.current.get(turn.id)?.focus();
  };
  const sibling = (by) => {
    const among = childrenOf(tree, parentOf(current));
    return among[among.indexOf(current) + by];
  };
  const onKeyDown = (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || !current) return;
    const open = current.children.length && !shut.has(current.id);
    const acts = {
      ArrowDown: () => choose(event.shiftKey ? sibling(1) : rows[at + 1]?.turn),
      ArrowUp: () => choose(event.shiftKey ? sibling(-1) : rows[at - 1]?.turn),
      ArrowRight: () => (open ? choose(current.children[0]) : set([current], false)),
      ArrowLeft: () => (open ? set([current], true) : choose(parentOf(current))),
      Home: () => choose(rows[0].turn),
      End: () => choose(rows.at(-1).turn),
      "*": () => set(childrenOf(tree, parentOf(current)), false),
      Enter: () => current.children.length && set([current], open),
      " ": () => current.children.length && set([current], open),
      Escape: onLeave,
      n: () => onStep(1),
      p: () => onStep(-1),
    };
    if (!(event.key in acts)) return;
    event.preventDefault();
    acts[event.key]();
  };
  return (
    <>
      <Shape rows={seen(tree, new Set())} onChoose={onChoose} current={current} />
      <p class="buttons">
        <button type="button" onClick={() => setClosed(new Set())}>Open all</button>{" "}
        <button type="button" onClick={() => setClosed(new Set(tree.turns.filter((turn) => turn.children.length).map((turn) => turn.id)))}>Close all</button>
      </p>
      <div class="tree" role="tree" aria-label={label} onKeyDown={onKeyDown}>
        {drawn.map((row) => (
          <Item key={row.turn.id} row={row} closed={shut.has(row.turn.id)} current={row.turn === current} words={words}
            hit={hits.has(row.turn)} onChoose={() => onChoose(row.turn)}
            onToggle={() => set([row.turn], !shut.has(row.turn.id))}
            keep={(element) => (element ? items.current.set(row.turn.id, element) : items.current.delete(row.turn.id))} />
        ))}
      </div>
      {rows.length > drawn.length && <p><button type="button" onClick={() => setMost(drawn.length + AT_ONCE)}>Show {Math.min(AT_ONCE, rows.length - drawn.length)} of {number(rows.length - drawn.length)} more turns</button></p>}
    </>
  );
}

function Item({ row: { turn, level, forks, at, of }, closed, current, words, hit, onChoose, onToggle, keep }) {
  const sides = [...new Set(turn.marks.map((mark) => mark.side))];
  const branches = turn.children.length > 0;
  return (
    <div ref={keep} class={`turn s${colorOf(turn.speaker)} ${sides.join(" ")}${current ? " current" : ""}${hit ? " hit" : ""}${turn.dropped.length ? " lost" : ""}`}
      role="treeitem" aria-level={level} aria-posinset={at} aria-setsize={of} aria-selected={current}
      aria-expanded={branches ? !closed : undefined} tabIndex={current ? 0 : -1} onClick={onChoose}
      style={{ marginInlineStart: `${Math.min(forks, 8) * 0.9}rem` }}>
      <span class="head">
        <span class={`knob${branches ? "" : " leaf"}`} aria-hidden="true" onClick={branches ? (event) => { event.stopPropagation(); onToggle(); } : undefined}>{branches ? (closed ? "▸" : "▾") : "•"}</span>
        <b class="who" dir="auto">{turn.speaker}</b>
        {turn.notes.brief && <span class="chip" title="the private instruction this was said under">{turn.notes.brief}</span>}
        {turn.notes.strategy && <span class="chip strategy" title="the strategy this was said by"><Marked text={String(turn.notes.strategy)} words={words} /></span>}
        {[...new Map(turn.marks.map((mark) => [`${mark.side} ${mark.kind} ${mark.score}`, mark])).values()].slice(0, 4).map((mark) => (
          <span key={`${mark.side} ${mark.kind} ${mark.score}`} class={`chip ${mark.side}`}>{mark.side === "chosen" ? "✓" : "✗"} {mark.side} · {mark.kind} pair{typeof mark.score === "number" ? ` · ${number(mark.score)}` : ""}</span>
        ))}
        {turn.dropped.map((reason) => <span key={reason} class="chip lost">dropped: {reason}</span>)}
      </span>
      <span class="said" dir="auto">{turn.text ? <Marked text={turn.text} words={words} /> : <i>(nothing)</i>}</span>
      <Facts turn={turn} closed={closed} />
    </div>
  );
}

/** What a screen reader hears of an action: how many numbers, and those that stand out. */
function actionInWords(action) {
  const sized = action.map((value, at) => [value, at + 1]).sort(([one], [other]) => Math.abs(other) - Math.abs(one));
  const most = Math.abs(sized[0]?.[0] ?? 0);
  const led = sized.filter(([value], place) => place < 3 && most > 0 && Math.abs(value) >= most / 2);
  return `action of ${action.length} numbers${led.length ? `, largest ${led.map(([value, at]) => `number ${at}: ${number(value)}`).join(", ")}` : ""}`;
}

function Facts({ turn, closed }) {
  const verdict = verdictOf(turn);
  const scores = Object.entries(turn.scores).filter(([name]) => name !== "correct");
  const { answer, action } = turn.notes;
  if (answer === undefined && !verdict && !scores.length && !Array.isArray(action) && !(closed && turn.below)) return null;
  return (
    <span class="facts">
      {answer !== undefined ? <span class={verdict}>answer <bdi>{answer || "none found"}</bdi>{verdict && ` – ${verdict}`}</span>
        : verdict && <span class={verdict}>{verdict}</span>}
      {scores.map(([name, score]) => <span key={name}>{name} {number(score)}</span>)}
      {Array.isArray(action) && action.every((one) => typeof one === "number") && <Columns values={action} title={actionInWords(action)} />}
      {closed && turn.below > 0 && <span>{turn.below} {turn.below > 1 ? "turns" : "turn"} below</span>}
    </span>
  );
}

/** The shape of a tree, first turns on the left: a dot for each turn, hollow where wrong. For the mouse; keys have the tree. */
function Shape({ rows, onChoose, current }) {
  if (rows.length > MAX_MAP || rows.every((row) => row.of === 1) || rows.every((row) => row.level === 1)) return null;
  const across = Math.min(92, 600 / Math.max(1, Math.max(...rows.map((row) => row.level)) - 1));
  const down = new Map();
  let leaves = 0;
  for (const { turn } of rows) if (!turn.children.length) down.set(turn, leaves++);
  for (const { turn } of [...rows].reverse()) {
    if (turn.children.length) down.set(turn, (down.get(turn.children[0]) + down.get(turn.children.at(-1))) / 2);
  }
  const level = new Map(rows.map((row) => [row.turn, row.level]));
  const x = (turn) => 16 + across * (level.get(turn) - 1), y = (turn) => 14 + 20 * down.get(turn);
  const width = 32 + across * (Math.max(...rows.map((row) => row.level)) - 1), height = 28 + 20 * (leaves - 1);
  const edge = (turn) => {
    const from = parentOf(turn), middle = (x(from) + x(turn)) / 2;
    return `M${x(from)} ${y(from)}C${middle} ${y(from)} ${middle} ${y(turn)} ${x(turn)} ${y(turn)}`;
  };
  return (
    <figure class="shape" aria-hidden="true">
      <svg class="map" viewBox={`0 0 ${width} ${height}`} width={width} height={height}>
        {rows.filter(({ turn }) => turn.parent >= 0).map(({ turn }) => <path key={turn.id} class={`edge ${turn.marks[0]?.side ?? ""}${turn.dropped.length ? " lost" : ""}`} d={edge(turn)} />)}
        {rows.map(({ turn }) => (
          <circle key={turn.id} class={`s${colorOf(turn.speaker)} ${verdictOf(turn)}${turn === current ? " current" : ""}${turn.dropped.length ? " lost" : ""}`}
            cx={x(turn)} cy={y(turn)} r="6.5" onClick={() => onChoose(turn)}><title>{`${turn.speaker}: ${turn.text.slice(0, 160)}`}</title></circle>
        ))}
      </svg>
      <figcaption>
        {rows.some(({ turn }) => verdictOf(turn)) && <><span class="key right">right</span><span class="key wrong">wrong</span></>}
        {rows.some(({ turn }) => turn.marks.length) && <><span class="key chosen">chosen</span><span class="key rejected">rejected</span></>}
        {rows.some(({ turn }) => turn.dropped.length) && <span class="key lost">dropped</span>}
      </figcaption>
    </figure>
  );
}

/** What a private brief says, where the run wrote it down; one may mean something else in one log only. */
function briefOf({ notes, tree }) {
  const texts = tree.run.overview.value?.briefs ?? {};
  return texts[`${tree.part}/${notes.brief}`] ?? texts[notes.brief];
}

const PrivateBrief = ({ name, text }) => (text === undefined ? name
  : <details class="fold brief"><summary>{name}</summary><p class="pre" dir="auto">{text || "(no system message)"}</p></details>);

/** Everything that is known of one turn. */
export function InFull({ turn }) {
  const notes = Object.entries(turn.notes).filter(([name]) => !SAID_APART.has(name));
  const { id, speaker, text, notes: all, scores } = turn;
  return (
    <div class="full">
      <dl>
        {turn.notes.model && <><dt>said by the model</dt><dd dir="auto">{turn.notes.model}</dd></>}
        {turn.notes.brief && <><dt>under the private brief</dt><dd dir="auto"><PrivateBrief name={turn.notes.brief} text={briefOf(turn)} /></dd></>}
        {turn.notes.strategy && <><dt>by the strategy</dt><dd dir="auto">{turn.notes.strategy}</dd></>}
        {Array.isArray(turn.notes.action) && <><dt>action</dt><dd class="long">{turn.notes.action.map((one) => (typeof one === "number" ? number(one) : String(one))).join(", ")}</dd></>}
        {notes.map(([name, value]) => [<dt key={name}>{name}</dt>, <dd key={`${name} value`} dir="auto">{plain(value)}</dd>])}
        {turn.marks.map((mark, at) => [<dt key={at}>{mark.side}</dt>, <dd key={`${at} value`}>in a pair of kind {mark.kind}{typeof mark.score === "number" ? `, score ${number(mark.score)}` : ""}</dd>])}
      </dl>
      <details class="fold"><summary>as JSON</summary>
        <pre tabIndex={0} aria-label="the turn as JSON">{JSON.stringify({ id, parent: parentOf(turn)?.id ?? null, speaker, text, notes: all, scores }, null, 2)}</pre></details>
    </div>
  );
}

/** What only judges and speakers know of a scene; shown on demand. */
export function Private({ tree, words }) {
  const facts = Object.entries(tree.facts), briefs = Object.entries(tree.briefs);
  if (!facts.length && !briefs.length) return null;
  return (
    <details class="fold"><summary>Private: what only judges and speakers know</summary>
      <dl>
        {briefs.map(([name, brief]) => [<dt key={name}>brief of {name}</dt>, <dd key={`${name} text`} class="pre" dir="auto"><Marked text={brief} words={words} /></dd>])}
        {facts.map(([name, fact]) => [<dt key={`fact ${name}`}>{name}</dt>, <dd key={`fact ${name} text`} class="pre" dir="auto"><Marked text={plain(fact)} words={words} /></dd>])}
      </dl>
    </details>
  );
}
