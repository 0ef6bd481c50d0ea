"use strict";
(() => {
  const words = ["ok", "warming", "unknown", "warn", "alarm"];
  const ns = "http://www.w3.org/2000/svg";
  const make = (parent, tag, css) => {
    const node = document.createElementNS(ns, tag);
    node.setAttribute("class", css);
    parent.append(node);
    return node;
  };
  for (const svg of document.querySelectorAll("svg[data-hover]")) {
    const points = JSON.parse(svg.dataset.hover);
    const [top, bottom] = JSON.parse(svg.dataset.plot);
    const readout = svg.parentElement.querySelector(".readout");
    const resting = readout.textContent;
    if (!points.length) continue;
    const group = make(svg, "g", "cursor");
    const hair = make(group, "path", "hair");
    const ring = make(group, "circle", "ring");
    ring.setAttribute("r", "5");
    let at = points.length - 1;
    const show = (index) => {
      at = Math.max(0, Math.min(points.length - 1, index));
      const [x, y, step, score, limit, state] = points[at];
      hair.setAttribute("d", `M${x} ${top}V${bottom}`);
      ring.setAttribute("cx", x);
      ring.setAttribute("cy", y === null ? bottom : y);
      ring.setAttribute("visibility", y === null ? "hidden" : "visible");
      group.classList.add("on");
      const against = limit === "–" ? "" : ` · threshold ${limit}`;
      readout.textContent =
        `step ${step.toLocaleString("en")} · ${score}${against} · ${words[state] || "not judged"}`;
    };
    const hide = () => {
      group.classList.remove("on");
      readout.textContent = resting;
    };
    const nearest = (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      let low = 0;
      let high = points.length - 1;
      while (high - low > 1) {
        const middle = (low + high) >> 1;
        if (points[middle][0] < x) low = middle;
        else high = middle;
      }
      return x - points[low][0] < points[high][0] - x ? low : high;
    };
    svg.setAttribute("tabindex", "0");
    svg.setAttribute("aria-keyshortcuts", "ArrowLeft ArrowRight Home End");
    svg.addEventListener("pointermove", (event) => show(nearest(event)));
    svg.addEventListener("pointerdown", (event) => show(nearest(event)));
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("focus", () => show(at));
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const page = Math.max(1, Math.round(points.length / 10));
      const to = {
        ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - page, PageDown: at + page,
        Home: 0, End: points.length - 1,
      }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      show(to);
    });
  }
  for (const button of document.querySelectorAll("button.copy")) {
    const code = button.previousElementSibling;
    const resting = button.textContent;
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "selected";
      }
      setTimeout(() => (button.textContent = resting), 2000);
    });
  }
  let opened = [];
  window.addEventListener("beforeprint", () => {
    const folded = document.querySelectorAll("details.more:not([open]), details.why:not([open])");
    opened = [...opened, ...folded];
    for (const details of folded) details.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
    opened = [];
  });
})();
