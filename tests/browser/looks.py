"""What can be measured of a view's looks: overflow, clipped text, contrast, words that nobody explains."""

OVERFLOWING = """() => {
  const found = [];
  for (let node = document.querySelector(".mlxnb-view"); node; node = node.parentElement)
    if (node.scrollWidth > node.clientWidth) found.push(`${node.tagName}.${node.className}`);
  return found;
}"""

# Text that is cut off at the side without an ellipsis, or at the bottom; scrolling panes excepted.
CLIPPED = """() => [...document.querySelectorAll(".mlxnb-view *")].filter((node) => {
  const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
  if (!own || !node.getClientRects().length || node.closest(".ms-source, .mv-fold-body, .ms-tokens")) return false;
  if (node.matches(".ms-cell")) { // its KV bar sticks out on purpose: measure the text
    const range = document.createRange();
    range.selectNodeContents(node);
    return range.getBoundingClientRect().width > node.clientWidth;
  }
  const style = getComputedStyle(node);
  if (style.clipPath !== "none") return false; // for screen readers alone
  const inline = style.display === "inline";
  const wide = !inline && style.textOverflow !== "ellipsis" && node.scrollWidth > node.clientWidth + 1;
  const tall = !inline && style.webkitLineClamp === "none" && node.scrollHeight > node.clientHeight + 2;
  return wide || tall;
}).map((node) => `${node.className}: ${node.textContent}`)"""

# The contrast of every visible text against what lies behind it, as WCAG 2 counts it.
CONTRASTS = """() => {
  const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d",
    { willReadFrequently: true });
  const known = new Map(); // of a thousand cells most lie on the same few colours, and reading a pixel is slow
  const over = (colours) => {
    const key = colours.join(" ");
    if (!known.has(key)) {
      context.clearRect(0, 0, 1, 1);
      for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
      known.set(key, [...context.getImageData(0, 0, 1, 1).data].slice(0, 3));
    }
    return known.get(key);
  };
  const luminance = (rgb) => rgb.map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [];
  for (const node of document.querySelectorAll(".mlxnb-view *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!own || !node.getClientRects().length) continue;
    const behind = [];
    for (let each = node; each; each = each.parentElement) behind.unshift(getComputedStyle(each).backgroundColor);
    const [a, b] = [over(behind), over([...behind, getComputedStyle(node).color])].map(luminance);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([Math.round(ratio * 100) / 100, `${node.className}: ${node.textContent}`]);
  }
  return found;
}"""

# Words of the field on the screen that no tooltip of the view explains; the model's own code and names excepted.
UNEXPLAINED = r"""() => {
  const words = ["prefill", "decode", "KV", "offset", "pending", "entropy", "logit lens", "rms", "absmax", "std",
    "bubbles", "forced", "relative", "capacity", "percentile", "clipped", "hidden channel", "embed"];
  const texts = document.createTreeWalker(document.querySelector(".mlxnb-view"), NodeFilter.SHOW_TEXT);
  const seen = new Map();
  for (let text = texts.nextNode(); text; text = texts.nextNode()) {
    const node = text.parentElement;
    if (!node.getClientRects().length || node.closest(".ms-source, .mv-mono, .ms-token, style, option")) continue;
    for (const word of words.filter((each) => new RegExp(`(?<![\\w.])${each}(?![\\w.])`).test(text.data))) {
      const tip = node.closest("[title]:not([title=''])")?.title;
      seen.set(word, seen.get(word) || (tip && tip !== text.data.trim()) || false);
    }
  }
  return [...seen].filter(([, explained]) => !explained).map(([word]) => word);
}"""
