// A list of any length: only the rows in sight are drawn. One stop for the Tab key; the arrows move within it.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

const SPARE = 6;   // rows drawn above and below what is seen

/** Args: items; row(item) draws one, `height` pixels high; current: place of the chosen one or -1; onPick(item), onEnter(). */
export function List({ items, row, height, current, onPick, onEnter, label, id }) {
  const box = useRef(null);
  const [top, setTop] = useState(0);
  const [room, setRoom] = useState(600);
  useEffect(() => {
    const watch = new ResizeObserver(([entry]) => setRoom(entry.contentRect.height));
    watch.observe(box.current);
    return () => watch.disconnect();
  }, []);
  useLayoutEffect(() => {   // the chosen row stays in sight, also when the list under it changes
    if (current < 0) return;
    const { scrollTop, clientHeight } = box.current;
    if (current * height < scrollTop) box.current.scrollTop = current * height;
    else if ((current + 1) * height > scrollTop + clientHeight) box.current.scrollTop = (current + 1) * height - clientHeight;
  }, [current, items.length]);
  const first = Math.max(0, Math.floor(top / height) - SPARE);
  const last = Math.min(items.length, Math.ceil((top + room) / height) + SPARE);
  const page = Math.max(1, Math.floor(room / height) - 1);
  const onKeyDown = (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const next = { ArrowDown: current + 1, ArrowUp: current - 1, PageDown: current + page, PageUp: current - page,
      Home: 0, End: items.length - 1 }[event.key];
    if (event.key === "Enter" || event.key === "ArrowRight") onEnter();
    else if (next === undefined || !items.length) return;
    else onPick(items[Math.min(items.length - 1, Math.max(0, next))]);
    event.preventDefault();
  };
  return (
    <div class="list" ref={box} id={id} role="listbox" tabIndex={0} aria-label={label} onKeyDown={onKeyDown}
      aria-activedescendant={current >= first && current < last ? `${id}-${current}` : undefined}
      onScroll={(event) => setTop(event.currentTarget.scrollTop)}>
      <div class="list-space" role="presentation" style={{ height: `${items.length * height}px` }}>
        {items.slice(first, last).map((item, at) => (
          <div key={first + at} id={`${id}-${first + at}`} class="row" role="option" aria-selected={first + at === current}
            aria-setsize={items.length} aria-posinset={first + at + 1} onClick={() => onPick(item, true)}
            style={{ height: `${height}px`, transform: `translateY(${(first + at) * height}px)` }}>{row(item)}</div>
        ))}
      </div>
    </div>
  );
}
