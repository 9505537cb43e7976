// The exported network: an image's pixels go in, people come out. Cropping, normalising and decoding are in the graph.
import * as ort from "./ort.wasm.bundle.min.mjs";

ort.env.wasm.numThreads = 1; // more need headers that few static servers send
ort.env.wasm.wasmPaths = { wasm: new URL("./ort-wasm-simd-threaded.wasm", import.meta.url).href };

// What `facts.json` says, with `find(pixels, box)` added.
export async function loadNetwork() {
  const facts = await (await fetch("facts.json")).json();
  const session = await ort.InferenceSession.create("student.onnx", { executionProviders: ["wasm"] });

  // `pixels` is an ImageData; `box` is [x, y, width, height] in its pixels. Gives people: [[x, y, score], ...] each.
  async function find(pixels, box) {
    const { width, height } = pixels;
    const image = new ort.Tensor("uint8", rgb(pixels.data), [height, width, 3]);
    const boxes = new ort.Tensor("float32", Float32Array.from(box), [1, 4]);
    const { keypoints } = await session.run({ image, boxes });
    const [people, joints] = keypoints.dims;
    return Array.from({ length: people }, (_, n) =>
      Array.from({ length: joints }, (_, k) => Array.from(keypoints.data.subarray(3 * (n * joints + k), 3 * (n * joints + k) + 3))));
  }
  return { ...facts, find };
}

// Without the fourth channel.
function rgb(rgba) {
  const out = new Uint8Array((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    out[to++] = rgba[from];
    out[to++] = rgba[from + 1];
    out[to++] = rgba[from + 2];
  }
  return out;
}
