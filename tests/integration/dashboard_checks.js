/* What a page's readers need of it, looked at by hand: names, ids, headings, landmarks, tables and
contrast. Returns what is wrong, each as "kind: where". */
(selector) => {
  const root = document.querySelector(selector);
  const wrong = [];
  const say = (kind, each) => wrong.push(`${kind}: ${each.outerHTML.slice(0, 100)}`);
  const shown = (each) => each.checkVisibility({ visibilityProperty: true, opacityProperty: true });
  const all = (what) => [...root.querySelectorAll(what)].filter(shown);

  const named = (each) => each.getAttribute("aria-label")?.trim() || each.labels?.length ||
    (each.getAttribute("aria-labelledby") ?? "").split(" ").some(
      (id) => document.getElementById(id)?.textContent.trim()) ||
    (each.matches("button, a") && each.textContent.trim());
  all("button, a, input, select, [role=region], [role=img], [role=log], dialog, section")
    .filter((each) => !named(each)).forEach((each) => say("no name", each));
  for (const each of document.querySelectorAll("[id]")) {
    if (document.querySelectorAll(`[id="${CSS.escape(each.id)}"]`).length > 1) say("id twice", each);
  }
  all("table").filter((each) => !each.caption).forEach((each) => say("no caption", each));
  all("th").filter((each) => !each.scope).forEach((each) => say("no scope", each));

  if (selector === "body") {
    let level = 0;
    for (const each of all("h1, h2, h3, h4, h5, h6")) {
      const its = Number(each.tagName[1]);
      if (its > level + 1) say("heading skips a level", each);
      level = its;
    }
    for (const each of ["html[lang]", "head > title", "header", "main", "h1", "[role=status]"]) {
      if (document.querySelectorAll(each).length !== 1) wrong.push(`not one: ${each}`);
    }
  }

  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const channels = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (rgb) => rgb.slice(0, 3).map((each) => each / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (each) => {
    for (let at = each; at; at = at.parentElement) {
      const colour = channels(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const ratio = (one, other) => {
    const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  };
  const texts = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  for (let text = texts.nextNode(); text; text = texts.nextNode()) {
    const each = text.parentElement;
    if (!text.data.trim() || !shown(each) || each.closest("title, script, svg")) continue;
    const found = ratio(channels(getComputedStyle(each).color), ground(each));
    if (found < 4.5) say("contrast", each);
  }
  for (const each of all(".chart rect")) { // 3 is enough for what is no text
    const { fill, stroke } = getComputedStyle(each);
    const colour = channels(fill === "none" ? stroke : fill);
    if (ratio(colour, ground(each.closest("svg"))) < 3) say("contrast", each);
  }
  return wrong;
}
