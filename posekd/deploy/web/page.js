// The page: an image or the webcam, a box drawn with the pointer, and the people whom the network finds in it.
import { drawBox, drawPeople } from "./draw.js";
import { loadNetwork } from "./pose.js";

const get = (id) => document.getElementById(id);
const stage = get("stage"), picture = get("picture"), overlay = get("overlay"), threshold = get("threshold");
const canvas = get("image"), image = canvas.getContext("2d", { willReadFrequently: true });
const video = Object.assign(document.createElement("video"), { muted: true, playsInline: true });

let network = null;
let shown = null; // the ImageData on the page
let name = ""; // of its file
let box = null; // drawn by the user; null is the whole image
let people = [];
let camera = null; // its stream
let running = Promise.resolve(); // searches follow one another

function say(text, state) {
  get("status").textContent = text;
  if (state) document.body.dataset.state = state;
}

const wholeImage = () => [0, 0, shown.width, shown.height];

// ---- Images ---------------------------------------------------------------------------------------------------------

// Puts what can be drawn (a bitmap, a video's frame) on the page.
function put(source, width, height) {
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  image.drawImage(source, 0, 0);
  shown = image.getImageData(0, 0, width, height);
  document.body.classList.add("shown");
}

async function open(blob, title) {
  stopCamera();
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
    put(bitmap, bitmap.width, bitmap.height);
  } catch {
    say(`${title} is no image that this browser can read.`, "failed");
    return;
  }
  bitmap.close();
  [name, box] = [title, null];
  await find();
}

// Finds the person in the box, or in the whole image, and draws.
function find() {
  running = running.then(async () => {
    if (!network || !shown) return;
    document.body.dataset.state = "busy";
    const start = performance.now();
    try {
      people = await network.find(shown, box ?? wholeImage());
    } catch (error) {
      people = [];
      draw();
      say(`The network refused this image: ${error.message ?? error}`, "failed");
      return;
    }
    const took = performance.now() - start;
    draw();
    const where = box ? "in the box" : "in the whole image (drag a box to look there alone)";
    say(`${name}, ${shown.width} × ${shown.height}, ${took.toFixed(0)} ms, ${where}.`, "done");
  });
  return running;
}

// ---- Drawing --------------------------------------------------------------------------------------------------------

function draw() {
  if (!shown) return;
  const { clientWidth, clientHeight } = stage, { width, height } = shown;
  const fit = Math.min(clientWidth / width, clientHeight / height);
  picture.style.width = `${width * fit}px`;
  picture.style.height = `${height * fit}px`;
  const scale = fit * devicePixelRatio;
  overlay.width = Math.round(width * scale);
  overlay.height = Math.round(height * scale);
  const context = overlay.getContext("2d");
  paint(context, scale);
  if (box) drawBox(context, box, scale);
  table();
  for (const id of ["whole", "save-picture", "save-keypoints"]) get(id).disabled = false;
}

function paint(context, scale) {
  const line = Math.max(2, Math.round((Math.max(shown.width, shown.height) * scale) / 300));
  drawPeople(context, people, network, { scale, line, threshold: Number(threshold.value) });
}

function table() {
  const rows = (people[0] ?? []).map(([x, y, score], k) => {
    const row = document.createElement("tr");
    row.className = score > Number(threshold.value) ? "" : "faint";
    for (const text of [network.keypoints[k].replaceAll("_", " "), x.toFixed(1), y.toFixed(1), score.toFixed(2)])
      row.insertCell().textContent = text;
    return row;
  });
  get("keypoints").replaceChildren(...rows);
}

// ---- The webcam -----------------------------------------------------------------------------------------------------

async function startCamera() {
  try {
    camera = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 } } });
    video.srcObject = camera;
    await video.play();
  } catch (error) {
    stopCamera();
    say(`No webcam: ${error.message ?? error}`, "failed");
    return;
  }
  [name, box] = ["webcam", null];
  get("webcam").textContent = "Stop webcam";
  const mine = camera;
  while (camera === mine) {
    put(video, video.videoWidth, video.videoHeight);
    await find();
    await new Promise(requestAnimationFrame);
  }
}

function stopCamera() {
  camera?.getTracks().forEach((track) => track.stop());
  camera = null;
  get("webcam").textContent = "Webcam";
}

// ---- What the user does ---------------------------------------------------------------------------------------------

function pixelAt(event) {
  const area = overlay.getBoundingClientRect();
  const inside = (value, size) => Math.min(Math.max(value, 0), 1) * size;
  return [
    inside((event.clientX - area.left) / area.width, shown.width),
    inside((event.clientY - area.top) / area.height, shown.height),
  ];
}

overlay.addEventListener("pointerdown", (down) => {
  overlay.setPointerCapture(down.pointerId);
  const [x0, y0] = pixelAt(down), before = box;
  const drag = (event) => {
    const [x, y] = pixelAt(event);
    box = [Math.min(x, x0), Math.min(y, y0), Math.abs(x - x0), Math.abs(y - y0)];
    if (!camera) draw();
  };
  overlay.addEventListener("pointermove", drag);
  const end = () => {
    overlay.removeEventListener("pointermove", drag);
    if (box !== before && Math.min(box[2], box[3]) < 4) box = before; // a click
    if (camera) return;
    if (box === before) draw();
    else find();
  };
  overlay.addEventListener("lostpointercapture", end, { once: true });
});

get("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) open(file, file.name);
  event.target.value = "";
});
get("webcam").addEventListener("click", () => (camera ? stopCamera() : startCamera()));
get("whole").addEventListener("click", () => {
  box = null;
  if (!camera) find();
});
threshold.addEventListener("input", () => {
  get("threshold-value").textContent = Number(threshold.value).toFixed(2);
  draw();
});
stage.addEventListener("dragover", (event) => {
  event.preventDefault();
  stage.classList.add("over");
});
stage.addEventListener("dragleave", () => stage.classList.remove("over"));
stage.addEventListener("drop", (event) => {
  event.preventDefault();
  stage.classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) open(file, file.name);
});
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) open(file, "pasted image");
});
new ResizeObserver(draw).observe(stage);

function save(blob, file) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: file });
  link.click();
  URL.revokeObjectURL(link.href);
}

get("save-picture").addEventListener("click", () => {
  const copy = Object.assign(document.createElement("canvas"), { width: shown.width, height: shown.height });
  const context = copy.getContext("2d");
  context.putImageData(shown, 0, 0);
  paint(context, 1);
  copy.toBlob((blob) => save(blob, "pose.png"));
});
get("save-keypoints").addEventListener("click", () =>
  save(new Blob([JSON.stringify(results(), null, 1)], { type: "application/json" }), "pose.json"));

// What was found, in image pixels: `keypoints` is [x, y, score] for each name.
function results() {
  const { width, height } = shown;
  return { image: name, width, height, box: box ?? wholeImage(), names: network.keypoints, people };
}

// For other pages and for tests: `await pose.open(blob, title)`, `pose.results()`.
window.pose = { open, results };

// ---- Start ----------------------------------------------------------------------------------------------------------

try {
  network = await loadNetwork();
  document.title = get("title").textContent = network.title;
  get("facts").textContent = network.facts;
  say("Ready.", "ready");
  const asked = new URLSearchParams(location.search).get("image"); // index.html?image=photo.jpg
  if (asked) await open(await (await fetch(asked)).blob(), asked);
} catch (error) {
  say(`The network cannot be loaded: ${error.message ?? error}`, "failed");
}
