// The stage: two pictures under one slider, zoom and pan, and a mask that is painted on them.

const $ = (css) => document.querySelector(css);
const MOST = 16; // times the picture's own pixels

export class View {
  constructor() {
    this.stage = $("#stage");
    this.canvas = $("#over canvas");
    this.ink = this.canvas.getContext("2d");
    this.size = [1, 1];
    this.tool = "look";
    this.brush = 24;
    this.pointers = new Map();
    this.onpaint = () => {};
    for (const kind of ["pointerdown", "pointermove", "pointerup", "pointercancel", "pointerleave"])
      this.stage.addEventListener(kind, (event) => this[kind]?.(event));
    this.pointercancel = this.pointerup;
    this.stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    $("#slide").addEventListener("input", () => this.split(+$("#slide").value / 100));
    new ResizeObserver(() => this.layout()).observe(this.stage);
  }

  /** Shows a picture of this size, alone. */
  open(url, width, height) {
    this.size = [width, height];
    $("#before img").src = url;
    [this.canvas.width, this.canvas.height] = this.size;
    this.alone();
    this.layout();
    this.fit();
  }

  /** Shows only what was there before. */
  alone() {
    $("#after img").removeAttribute("src");
    this.stage.classList.add("alone");
    $("#slide").hidden = true;
    this.split(1);
  }

  /** Shows what became of it beside it. */
  compare(url) {
    $("#after img").src = url;
    this.stage.classList.remove("alone");
    $("#slide").hidden = false;
    this.split(0.5);
  }

  layout() {
    const [width, height] = this.size;
    const tall = Math.min((this.stage.clientWidth * height) / width, Math.max(innerHeight * 0.74, 240));
    this.stage.style.height = `${Math.round(tall)}px`;
    for (const sheet of this.stage.querySelectorAll(".sheet"))
      [sheet.style.width, sheet.style.height] = [`${width}px`, `${height}px`];
    if (!this.scale || this.fitted) this.fit();
    else this.move(this.x, this.y);
  }

  get least() {
    return Math.min(this.stage.clientWidth / this.size[0], this.stage.clientHeight / this.size[1]);
  }

  fit() {
    this.scale = this.least;
    this.move(0, 0);
  }

  /** Zooms by a factor and keeps what lies under a point of the stage where it is. */
  zoom(factor, at = [this.stage.clientWidth / 2, this.stage.clientHeight / 2]) {
    const before = this.scale;
    this.scale = Math.max(this.least, Math.min(before * factor, Math.max(MOST, this.least)));
    const grown = this.scale / before;
    this.move(at[0] - (at[0] - this.x) * grown, at[1] - (at[1] - this.y) * grown);
  }

  move(x, y) {
    const inside = (offset, room, length) =>
      length <= room ? (room - length) / 2 : Math.min(0, Math.max(room - length, offset));
    this.x = inside(x, this.stage.clientWidth, this.size[0] * this.scale);
    this.y = inside(y, this.stage.clientHeight, this.size[1] * this.scale);
    this.fitted = this.scale <= this.least * 1.001;
    this.stage.classList.toggle("zoomed", !this.fitted);
    this.stage.classList.toggle("sharp", this.scale >= 3);
    for (const sheet of this.stage.querySelectorAll(".sheet"))
      sheet.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
    $("#scale").value = `${Math.round(this.scale * 100)} %`;
  }

  split(share) {
    const kept = Math.min(1, Math.max(0, share));
    this.stage.querySelector(".clip").style.clipPath = `inset(0 ${100 - kept * 100}% 0 0)`;
    $("#line").style.left = `${kept * 100}%`;
    $("#slide").value = kept * 100;
  }

  point(event) {
    const box = this.stage.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  pointerdown(event) {
    if (event.button > 0 || event.target.closest("#busy")) return;
    event.preventDefault();
    try {
      this.stage.setPointerCapture(event.pointerId);
    } catch {
      // the pointer has gone up already
    }
    this.pointers.set(event.pointerId, this.point(event));
    this.sliding = Boolean(event.target.closest("#line")) && this.tool === "look";
    if (this.tool !== "look" && this.pointers.size === 1) this.stroke(this.point(event), this.point(event));
    else if (this.tool === "look" && this.fitted && this.pointers.size === 1) this.slideTo(event);
  }

  pointermove(event) {
    this.ring(event);
    const last = this.pointers.get(event.pointerId);
    if (!last) return;
    const here = this.point(event);
    this.pointers.set(event.pointerId, here);
    if (this.pointers.size === 2) this.pinch(event.pointerId, last, here);
    else if (this.tool !== "look") this.stroke(last, here);
    else if (this.sliding || this.fitted) this.slideTo(event);
    else this.move(this.x + here[0] - last[0], this.y + here[1] - last[1]);
  }

  pointerup(event) {
    this.pointers.delete(event.pointerId);
    this.sliding = false;
  }

  pointerleave() {
    $("#ring").hidden = true;
  }

  slideTo(event) {
    if (this.stage.classList.contains("alone")) return;
    this.split(this.point(event)[0] / this.stage.clientWidth);
  }

  pinch(id, last, here) {
    const [other] = [...this.pointers].filter(([key]) => key !== id).map(([, at]) => at);
    const apart = (a) => Math.max(Math.hypot(a[0] - other[0], a[1] - other[1]), 1);
    this.zoom(apart(here) / apart(last), [(here[0] + other[0]) / 2, (here[1] + other[1]) / 2]);
    this.move(this.x + (here[0] - last[0]) / 2, this.y + (here[1] - last[1]) / 2);
  }

  wheel(event) {
    event.preventDefault();
    this.zoom(Math.exp(-Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 60) * 0.004), this.point(event));
  }

  /** Draws or erases from one point of the stage to another. */
  stroke(from, to) {
    const on = ([x, y]) => [(x - this.x) / this.scale, (y - this.y) / this.scale];
    this.ink.globalCompositeOperation = this.tool === "erase" ? "destination-out" : "source-over";
    this.ink.strokeStyle = "rgb(255 0 200)";
    this.ink.lineWidth = this.brush / this.scale;
    this.ink.lineCap = "round";
    this.ink.beginPath();
    this.ink.moveTo(...on(from));
    this.ink.lineTo(...on(to));
    this.ink.stroke();
    this.onpaint();
  }

  ring(event) {
    const ring = $("#ring");
    ring.hidden = this.tool === "look" || Boolean(event.target.closest("#busy"));
    const [x, y] = this.point(event);
    Object.assign(ring.style, { left: `${x}px`, top: `${y}px`, width: `${this.brush}px`, height: `${this.brush}px` });
  }

  clearMask() {
    this.ink.clearRect(0, 0, ...this.size);
  }

  /** Shows the lost pixels that an image has in colour. */
  async loadMask(url) {
    const image = new Image();
    image.src = url;
    await image.decode();
    this.clearMask();
    this.ink.globalCompositeOperation = "source-over";
    this.ink.drawImage(image, 0, 0);
    const data = this.ink.getImageData(0, 0, ...this.size);
    for (let i = 3; i < data.data.length; i += 4) data.data[i] = data.data[i] ? 255 : 0;
    this.ink.putImageData(data, 0, 0);
  }

  /** The mask as a PNG, white where pixels are lost. */
  mask() {
    const data = this.ink.getImageData(0, 0, ...this.size);
    for (let i = 0; i < data.data.length; i += 4) {
      const white = data.data[i + 3] > 127 ? 255 : 0;
      data.data.set([white, white, white, 255], i);
    }
    const sheet = Object.assign(document.createElement("canvas"), { width: this.size[0], height: this.size[1] });
    sheet.getContext("2d").putImageData(data, 0, 0);
    return new Promise((done) => sheet.toBlob(done, "image/png"));
  }
}
