// The marks of one picture: a class value a pixel, painted over it, with undo. Knows nothing of the server.
"use strict";

const TINT = 115; // of 255: opacity of marks
const MOST_STEPS = 60; // of undo; fewer for large pictures
const MOST_BYTES = 64e6;

export class Marks {
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.changed = changed; // called when a step is complete
    this.colours = []; // [r, g, b] of class 1, 2, …
    this.hidden = false;
    this.open(1, 1, new Uint8Array(1));
  }

  open(width, height, mask) {
    Object.assign(this, { width, height, mask, past: [], future: [], before: null, clicks: [] });
    this.canvas.width = width;
    this.canvas.height = height;
    this.pixels = this.context.createImageData(width, height);
    this.draw();
  }

  get empty() {
    return !this.mask.some((value) => value > 0 && value < 255);
  }

  // ------------------------------------------------------------------------------------------------------- steps

  begin() {
    this.before = this.mask.slice();
  }

  finish() {
    const before = this.before;
    this.before = null;
    if (before === null || before.every((value, at) => value === this.mask[at])) return;
    this.past.push(before);
    const most = Math.max(3, Math.min(MOST_STEPS, Math.floor(MOST_BYTES / this.mask.length)));
    if (this.past.length > most) this.past.shift();
    this.future = [];
    this.draw();
    this.changed();
  }

  step(from, to) {
    if (!from.length || this.before !== null) return;
    to.push(this.mask);
    this.mask = from.pop();
    this.draw();
    this.changed();
  }

  undo() {
    this.step(this.past, this.future);
  }

  redo() {
    this.step(this.future, this.past);
  }

  clear() {
    this.begin();
    this.mask.fill(0);
    this.finish();
  }

  // ----------------------------------------------------------------------------------------------------- painting

  disc(x, y, radius, value) {
    const { width, height, mask } = this;
    for (let row = Math.max(0, Math.ceil(y - radius)); row <= Math.min(height - 1, y + radius); row++) {
      const half = Math.sqrt(Math.max(0, radius * radius - (row - y) * (row - y)));
      const first = Math.max(0, Math.ceil(x - half)), last = Math.min(width - 1, Math.floor(x + half));
      if (first <= last) mask.fill(value, row * width + first, row * width + last + 1);
    }
  }

  line(from, to, radius, value) {
    const steps = Math.max(1, Math.ceil(Math.hypot(to.x - from.x, to.y - from.y) / Math.max(1, radius / 3)));
    for (let at = 0; at <= steps; at++)
      this.disc(from.x + ((to.x - from.x) * at) / steps, from.y + ((to.y - from.y) * at) / steps, radius, value);
    this.drawSoon();
  }

  box(x0, y0, x1, y1, value) {
    this.begin();
    for (let row = Math.max(0, Math.floor(y0)); row < Math.min(this.height, Math.ceil(y1)); row++)
      this.mask.fill(value, row * this.width + Math.max(0, Math.floor(x0)), row * this.width + Math.min(this.width, Math.ceil(x1)));
    this.finish();
  }

  // A region of 0 and 1 becomes the class; `base` is the mask that it is laid on.
  lay(region, value, base = this.mask) {
    this.begin();
    this.mask = Uint8Array.from(base, (old, at) => (region[at] ? value : old));
    this.finish();
  }

  // ------------------------------------------------------------------------------------------------------ drawing

  drawSoon() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  draw() {
    const { width, height, mask, context } = this;
    const data = new Uint32Array(this.pixels.data.buffer);
    const shades = new Uint32Array(256), lines = new Uint32Array(256), counts = new Uint32Array(256);
    lines[0] = 0xb0000000; // around marks: it shows on a ground of their own colour too
    for (let value = 1; value < 256; value++) {
      const [red, green, blue] = this.colours[value - 1] ?? [128, 128, 128];
      const colour = (blue << 16) | (green << 8) | red; // little endian, as all machines that browsers run on
      shades[value] = ((TINT << 24) | colour) >>> 0;
      lines[value] = ((255 << 24) | colour) >>> 0;
    }
    data.fill(0);
    if (!this.hidden)
      for (let row = 0, at = 0; row < height; row++)
        for (let column = 0; column < width; column++, at++) {
          const value = mask[at];
          counts[value]++;
          const edge = (column && mask[at - 1] !== value) || (column + 1 < width && mask[at + 1] !== value)
            || (row && mask[at - width] !== value) || (row + 1 < height && mask[at + width] !== value);
          if (value || edge) data[at] = edge ? lines[value] : shades[value];
        }
    context.putImageData(this.pixels, 0, 0);
    if (counts.subarray(1, 255).filter(Boolean).length > 1) this.number(counts);
  }

  // A class's number on the pixel in the middle of all of its own: colours come again, and not everybody sees them.
  number(counts) {
    const { width, mask, context } = this;
    const middle = counts.map((count) => count >> 1), seen = new Uint32Array(256);
    const size = Math.max(12, Math.round(Math.min(width, this.height) / 22));
    context.font = `bold ${size}px sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.lineWidth = size / 5;
    for (let at = 0; at < mask.length; at++) {
      const value = mask[at];
      if (!value || value === 255 || seen[value]++ !== middle[value]) continue;
      const place = [String(value), at % width, Math.floor(at / width)];
      context.strokeStyle = "#000";
      context.strokeText(...place);
      context.fillStyle = "#fff";
      context.fillText(...place);
    }
  }
}
