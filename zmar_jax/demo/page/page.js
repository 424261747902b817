// What the page does: pictures go to the server, jobs are followed, results are shown.

import { View } from "./view.js";

const $ = (css) => document.querySelector(css);
const POLL = 250; // ms
const view = new View();
let about, picture, job, mask = "auto";

class Refused extends Error {}

/** The answer of the server to a request, or an error whose message is for the reader. */
async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Refused("the server does not answer; is zmar-jax demo still running?");
  }
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(told.message || `the server answered ${answer.status}`);
  return told;
}

function say(message) {
  $("#error").hidden = !message;
  $("#error span").textContent = message || "";
}

/** Runs something; what goes wrong is told on the page. */
async function trying(work) {
  say("");
  try {
    await work();
  } catch (error) {
    say(error.message);
    if (!(error instanceof Refused)) console.error(error);
  }
}

async function drop(files) {
  if (files.length > 1) throw new Refused(`one picture at a time, please: these are ${files.length} files`);
  const [file] = files;
  if (!file) return;
  if (file.size > about.upload_mb * 1e6)
    throw new Refused(`${file.name}: ${Math.ceil(file.size / 1e6)} MB, and ${about.upload_mb} MB are allowed; make it smaller`);
  busy(`sending ${file.name}`);
  try {
    await open(await ask(`/api/pictures?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file }));
  } finally {
    idle();
  }
}

async function open(told) {
  await stop();
  picture = told;
  $("#drop").hidden = true;
  $("#view").hidden = false;
  $("#name").textContent = `${told.name} · ${told.width}×${told.height}`;
  $("#go").disabled = false;
  view.open(told.before, told.width, told.height);
  setMask("auto");
  forget();
  await restore();
}

/** Of a picture that has no result yet. */
function forget() {
  $("#download").hidden = $("#legend").hidden = true;
  $("#spread").disabled = !($("#spread").checked = false);
  $("#after .spread").hidden = true;
  $("#said").textContent = $("#lostShare").textContent = "";
}

function setMask(kind) {
  mask = kind;
  const notes = {
    auto: "They are found by themselves. Paint to say it yourself.",
    none: "No pixel counts as lost.",
    painted: "What is painted counts as lost.",
  };
  $("#maskNote").textContent = notes[kind];
  if (kind !== "painted") view.clearMask();
  $("#lost").disabled = false;
}

function wish() {
  const number = (id) => $(id).valueAsNumber;
  const samples = number("#heat") ? number("#samples") : 1;
  const weights = $("#hub").value.trim() || $("#weights").value;
  return { weights, brightness: number("#brightness"), heat: number("#heat"), samples, seed: number("#seed"), mask };
}

async function restore() {
  await stop();
  const mine = picture;
  if (mask === "painted") await ask(`/api/pictures/${mine.id}/mask`, { method: "PUT", body: await view.mask() });
  const body = JSON.stringify(wish());
  let now = await ask(`/api/pictures/${mine.id}/jobs`, { method: "POST", body });
  job = now.id;
  try {
    while (job === now.id && ["waiting", "running"].includes(now.state)) {
      busy(now.cancelling ? "ending after this step" : now.stage || "waiting for the picture before", now.share);
      await new Promise((done) => setTimeout(done, POLL));
      now = await ask(`/api/jobs/${now.id}`);
    }
  } finally {
    if (job === now.id) job = undefined, idle();
  }
  if (picture !== mine) return;
  if (now.state === "failed") throw new Refused(now.message);
  if (now.state === "cancelled") $("#said").textContent = "cancelled";
  if (now.state === "done") await show(now);
}

async function show({ id, result, seconds }) {
  view.compare(result.restored);
  if (mask !== "painted") await view.loadMask(result.lost);
  $("#lostShare").textContent = `${(100 * result.lost_share).toFixed(1)} %`;
  $("#said").textContent = `restored in ${seconds.toFixed(1)} s`;
  $("#spread").disabled = !result.spread;
  if (!result.spread) $("#spread").checked = false;
  else $("#after .spread").src = result.spread;
  $("#legend span").textContent = `0 to ${result.spread_scale.toFixed(1)} of 255`;
  showSpread();
  $("#download").hidden = false;
  $("#download").href = `${result.restored}?download`;
  $("#download").download = picture.download_name;
}

async function stop() {
  const old = job;
  job = undefined;
  if (old) await ask(`/api/jobs/${old}`, { method: "DELETE" });
}

function busy(text, share) {
  $("#busy").hidden = false;
  $("#stageText").textContent = text;
  $("#cancel").hidden = !job;
  if (typeof share === "number") $("#busy progress").value = share;
  else $("#busy progress").removeAttribute("value");
}

function idle() {
  $("#busy").hidden = true;
}

function showSpread() {
  $("#after .spread").hidden = $("#legend").hidden = !$("#spread").checked;
}

function showLost() {
  $("#over").hidden = !$("#lost").checked;
}

async function bringWeights([file]) {
  if (!file) return;
  $("#bring").disabled = true;
  $("#bring").textContent = "sending…";
  try {
    const { name } = await ask(`/api/weights?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file });
    $("#weights").add(new Option(name, name, false, true));
    $("#hub").value = "";
  } finally {
    $("#bring").disabled = false;
    $("#bring").textContent = "From a file…";
  }
}

function listen() {
  const on = (css, kind, work) => $(css).addEventListener(kind, work);
  const picked = (css, work) => on(css, "change", () => trying(() => work($(css).files)).then(() => ($(css).value = "")));
  picked("#file", drop);
  picked("#weightsFile", bringWeights);
  on("#bring", "click", () => $("#weightsFile").click());
  on("#weights", "change", () => ($("#hub").value = ""));
  on("#drop", "keydown", (event) => ["Enter", " "].includes(event.key) && event.target === $("#drop") && $("#file").click());
  on("#another", "click", () => $("#file").click());
  on("#sample", "click", (event) => {
    event.preventDefault();
    trying(async () => open(await ask("/api/sample", { method: "POST" })));
  });
  on("#controls", "submit", (event) => {
    event.preventDefault();
    if (!picture) return;
    $("#stage").scrollIntoView({ block: "nearest" });
    trying(restore);
  });
  on("#cancel", "click", () => trying(() => ask(`/api/jobs/${job}`, { method: "DELETE" })));
  on("#error button", "click", () => say(""));
  on("#in", "click", () => view.zoom(1.5));
  on("#out", "click", () => view.zoom(1 / 1.5));
  on("#fit", "click", () => view.fit());
  on("#spread", "change", showSpread);
  on("#lost", "change", showLost);
  for (const kind of ["auto", "none"]) on(`#${kind}`, "click", () => setMask(kind));
  for (const tool of document.querySelectorAll("[name=tool]")) tool.addEventListener("change", () => chooseTool(tool.value));
  view.onpaint = () => mask !== "painted" && setMask("painted");
  for (const range of document.querySelectorAll("fieldset input[type=range]")) {
    const tell = () => (range.parentElement.querySelector("output").value = range.value);
    range.addEventListener("input", tell);
    tell();
  }
  on("#heat", "input", () => {
    if (+$("#heat").value && $("#samples").value === "1") $("#samples").value = 4;
  });
  on("#brush", "input", () => (view.brush = +$("#brush").value));
  for (const kind of ["dragover", "dragleave", "drop"]) addEventListener(kind, dragged);
  addEventListener("pagehide", () => job && fetch(`/api/jobs/${job}`, { method: "DELETE", keepalive: true }));
  addEventListener("paste", (event) => event.clipboardData.files.length && trying(() => drop(event.clipboardData.files)));
}

function chooseTool(tool) {
  view.tool = tool;
  $("#stage").classList.toggle("painting", tool !== "look");
  if (tool !== "look") $("#lost").checked = true;
  showLost();
}

function dragged(event) {
  event.preventDefault();
  document.body.classList.toggle("over", event.type === "dragover");
  if (event.type === "drop") trying(() => drop(event.dataTransfer.files));
}

async function start() {
  about = await ask("/api/about");
  for (const name of about.weights) $("#weights").add(new Option(name));
  $("#own").hidden = !about.own_weights;
  $("#samples").max = about.most_samples;
  $("#file").accept = about.suffixes.join(",");
  $("#limits").textContent = `${about.suffixes.map((s) => s.slice(1)).join(", ")}; up to ${about.upload_mb} MB. It stays on the machine that runs zmar-jax demo.`;
  $("#lost").disabled = false;
  showLost();
  listen();
  document.body.dataset.ready = "yes";
}

trying(start);
