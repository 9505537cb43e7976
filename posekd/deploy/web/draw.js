// People drawn on a canvas, as `posekd predict` draws them: pixel i of the image has its centre at i + 0.5.

// `scale` is canvas pixels per image pixel; `line` the radius of a keypoint in canvas pixels.
export function drawPeople(context, people, facts, { scale, line, threshold }) {
  context.lineCap = "round";
  for (const person of people) {
    const at = person.map(([x, y]) => [(x + 0.5) * scale, (y + 0.5) * scale]);
    const shown = person.map((keypoint) => keypoint[2] > threshold);
    for (const { ends: [a, b], colour } of facts.edges) {
      if (!shown[a] || !shown[b]) continue;
      stroke(context, at[a], at[b], "#000", line + 3);
      stroke(context, at[a], at[b], colour, line + 1);
    }
    at.forEach((point, k) => {
      if (!shown[k]) return;
      disc(context, point, line + 1, "#000");
      disc(context, point, line, "#fff");
    });
  }
}

export function drawBox(context, [x, y, width, height], scale) {
  context.setLineDash([6, 4]);
  context.lineWidth = 1.5;
  context.strokeStyle = "#fff";
  context.strokeRect(x * scale, y * scale, width * scale, height * scale);
  context.lineDashOffset = 5;
  context.strokeStyle = "#000";
  context.strokeRect(x * scale, y * scale, width * scale, height * scale);
  context.lineDashOffset = 0;
  context.setLineDash([]);
}

function stroke(context, from, to, colour, width) {
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(...to);
  context.stroke();
}

function disc(context, [x, y], radius, colour) {
  context.fillStyle = colour;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
}
