// Which dialogues and turns are shown: filters, search, and what there is to filter by. No drawing here.
import { computed, signal } from "@preact/signals";
import { about, everyTree, runs, two } from "./data.js";
import { plain } from "./text.jsx";

export const EMPTY = { q: "", run: "", part: "", speaker: "", score: "", min: "", max: "", pair: "", side: "",
  dropped: "", note: "", sort: "" };
export const filters = signal(EMPTY);
export const mode = signal("dialogues");   // what the list holds: "dialogues" or "turns"

const NOTED = ["brief", "strategy"];

/** What there is to choose from, in the order it first comes up. */
export const facets = computed(() => {
  const found = { parts: new Map(), speakers: new Map(), scores: new Map(), pairs: new Map(), dropped: new Map(),
    notes: new Map() };
  const count = (map, name) => map.set(name, (map.get(name) ?? 0) + 1);
  for (const tree of everyTree.value) {
    count(found.parts, tree.part);
    for (const kind of tree.kinds) count(found.pairs, kind);
    for (const reason of tree.dropped) count(found.dropped, reason);
    for (const turn of tree.turns) {
      count(found.speakers, turn.speaker);
      for (const reason of turn.dropped) count(found.dropped, reason);
      for (const [name, value] of Object.entries(turn.scores)) {
        const [low, high] = found.scores.get(name) ?? [value, value];
        found.scores.set(name, [Math.min(low, value), Math.max(high, value)]);
      }
      for (const name of NOTED) if (turn.notes[name]) count(found.notes, `${name}: ${turn.notes[name]}`);
    }
  }
  return found;
});

const colors = computed(() => new Map([...facets.value.speakers.keys()].map((name, number) => [name, number % 6])));
export const colorOf = (speaker) => colors.value.get(speaker) ?? 0;

/** The words of a search: what stands in quotation marks is one. */
export function terms(query) {
  return [...query.toLowerCase().matchAll(/"([^"]+)"?|(\S+)/g)].map(([, quoted, word]) => quoted ?? word);
}

const lowerOf = (turn) => turn.lower ??= [turn.text, turn.notes.strategy, turn.notes.brief, turn.notes.answer]
  .filter(Boolean).join("\n").toLowerCase();
const headOf = (tree) => tree.lower ??= [tree.opening, tree.id, tree.scenario].join("\n").toLowerCase();
const privateOf = (tree) => tree.hidden ??= plain({ ...tree.briefs, ...tree.facts }).toLowerCase();
const has = (text, words) => words.every((word) => text.includes(word));

/** A test for turns apart from the search, null where every turn passes. */
function turnTest(set) {
  const tests = [];
  if (set.speaker) tests.push((turn) => turn.speaker === set.speaker);
  if (set.score) {
    const min = set.min === "" ? -Infinity : Number(set.min), max = set.max === "" ? Infinity : Number(set.max);
    tests.push(({ scores }) => scores[set.score] >= min && scores[set.score] <= max);
  }
  if (set.pair || set.side) {
    tests.push((turn) => turn.marks.some((mark) => (!set.side || mark.side === set.side)
      && (!set.pair || set.pair === "*" || mark.kind === set.pair.slice(1))));
  }
  if (set.dropped === "kept") tests.push((turn) => !turn.dropped.length);
  else if (set.dropped === "*") tests.push((turn) => turn.dropped.length);
  else if (set.dropped) tests.push((turn) => turn.dropped.includes(set.dropped.slice(1)));
  if (set.note) {
    const said = set.note.toLowerCase(), whole = facets.value.notes.has(set.note);   // a value, or a part of one
    tests.push(({ notes }) => NOTED.some((name) => notes[name] && (whole ? `${name}: ${notes[name]}` === set.note
      : `${name}: ${notes[name]}`.toLowerCase().includes(said))));
  }
  return tests.length ? (turn) => tests.every((test) => test(turn)) : null;
}

function ordered(trees) {
  const rank = new Map(runs.flatMap((run) => (run.overview.value?.parts ?? []).map((part, place) => [part.name, place])));
  return trees.map((tree, place) => ({ tree, place })).sort((one, other) => one.tree.run.number - other.tree.run.number
    || (rank.get(one.tree.part) ?? 99) - (rank.get(other.tree.part) ?? 99)
    || other.tree.kinds.length - one.tree.kinds.length || one.place - other.place).map(({ tree }) => tree);
}

const sorted = computed(() => ordered(everyTree.value));

/**
 * What passes: `trees` of {tree, hits, hidden} and `turns`; `searching` says whether single turns were looked for, and
 * `hidden` that the words stand only in what judges and speakers know.
 */
export const found = computed(() => {
  const set = filters.value;
  const words = terms(set.q), test = turnTest(set);
  const searching = words.length > 0 || test !== null;
  const trees = [], turns = [];
  for (const tree of sorted.value) {
    if ((set.part && tree.part !== set.part) || (set.run && tree.run.letter !== set.run)) continue;
    if (!searching) {
      trees.push({ tree, hits: [], hidden: false });
      for (const turn of tree.turns) turns.push(turn);
      continue;
    }
    const hits = [];
    let passed = test === null;
    for (const turn of tree.turns) {
      if (test && !test(turn)) continue;
      passed = true;
      if (!words.length || has(lowerOf(turn), words)) hits.push(turn);
    }
    const dropped = !words.length && (set.dropped === "*" ? tree.dropped.length
      : set.dropped && tree.dropped.includes(set.dropped.slice(1)));
    const inHead = words.length > 0 && passed && has(headOf(tree), words);
    const hidden = words.length > 0 && passed && !hits.length && !inHead && has(privateOf(tree), words);
    if (hits.length || dropped || inHead || hidden) trees.push({ tree, hits, hidden });
    for (const turn of hits) turns.push(turn);
  }
  if (set.score && set.sort) {
    const sign = set.sort === "up" ? 1 : -1;
    turns.sort((one, other) => sign * ((one.scores[set.score] ?? -Infinity) - (other.scores[set.score] ?? -Infinity)));
  }
  return { trees, turns, searching };
});

/**
 * The same scene in the other run: by the scenario's id, its words, or the beginning of its id (the same question put
 * otherwise). Of several, the n-th goes with the n-th, those that begin alike before the others.
 */
export function counterpart(tree) {
  if (!two || !tree) return null;
  const [mine, others] = [tree.run, runs[1 - tree.run.number]].map((run) => [...run.trees.value.values()]
    .filter((one) => one.part === tree.part));
  const stem = (one) => one.scenario.replace(/\/[^/]*$/, "");
  const begins = (one) => one.roots[0]?.speaker;
  for (const same of [(one) => one.scenario === tree.scenario, (one) => one.opening && one.opening === tree.opening,
    (one) => one.scenario.includes("/") && stem(one) === stem(tree)]) {
    const alike = (one) => same(one) && begins(one) === begins(tree);
    for (const test of [alike, same]) {
      const matches = others.filter(test);
      if (matches.length) return matches[Math.min(matches.length - 1, Math.max(0, mine.filter(test).indexOf(tree)))];
    }
  }
  return null;
}

// ---------------------------------------------------------------------------------------------- where one is

/** {page, run, key, turn}: what is looked at; the address after # says the same, so that it can be passed on. */
export const place = signal({ page: "overview", run: 0, key: null, turn: null });

const decoded = (part) => {
  try {
    return decodeURIComponent(part);
  } catch {
    return "";
  }
};

export function readAddress() {
  const [page, run, part, tree, turn] = location.hash.slice(1).split("/").map(decoded);
  place.value = {
    page: ["overview", "dialogues", "settings"].includes(page) ? page : "overview",
    run: Math.min(about.runs.length - 1, Number(run) || 0),
    key: tree ? `${part}\n${tree}` : null,
    turn: turn || null,
  };
}

export function go(next) {
  place.value = { ...place.value, ...next };
  const { page, run, key, turn } = place.value;
  const [part, tree] = (key ?? "\n").split("\n");
  const parts = page === "dialogues" && tree ? [page, run, part, tree, ...(turn ? [turn] : [])] : [page];
  history.replaceState(null, "", `#${parts.map(encodeURIComponent).join("/")}`);
}

export const goToTurn = (turn) => go({ page: "dialogues", run: turn.tree.run.number, key: turn.tree.key, turn: turn.id });
export const goToTree = (tree) => go({ page: "dialogues", run: tree.run.number, key: tree.key, turn: null });
