"use strict";

/* Students in the browser. The page is students.html; everything comes from the folder of this
   file: students.json says which there are, and each lies as `cfgdistill export --onnx` wrote it. */
(async () => {
  const HOME = new URL(".", document.currentScript.src);
  const at = (name) => document.getElementById(`live-${name}`);
  const file = (name) => new URL(name, HOME).href;
  const opened = new Map(); // of students: promises, so that each is fetched once
  const now = { set: "digits", steps: 1, w: 1, label: 0, prompt: "red heart", z: null };
  let sets, shape, random, brush;

  /* ---- noise ---- */

  /* Numbers in [0, 1) from a seed (mulberry32), and normal ones from pairs of them. */
  function generator(seed) {
    let state = seed >>> 0;
    const uniform = () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let a = Math.imul(state ^ (state >>> 15), state | 1);
      a ^= a + Math.imul(a ^ (a >>> 7), a | 61);
      return ((a ^ (a >>> 14)) >>> 0) / 4294967296;
    };
    return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  }

  function newNoise() {
    const [c, h, w] = shape;
    random = generator(Number(at("seed").value));
    now.z = Float32Array.from({ length: c * h * w }, random);
    brush = { x: w / 2, y: h / 2 };
  }

  /* Fresh noise in a disc around the brush, in all channels. */
  function repaint() {
    const [c, h, w] = shape;
    const radius = w / 8;
    for (let y = 0; y < h; y++)
      for (let x = 0; x < w; x++)
        if (Math.hypot(x + 0.5 - brush.x, y + 0.5 - brush.y) <= radius)
          for (let k = 0; k < c; k++) now.z[(k * h + y) * w + x] = random();
    draw();
  }

  /* ---- the student ---- */

  async function fetched(name, kind) {
    const answer = await fetch(file(name));
    if (!answer.ok) throw new Error(`${name} could not be loaded (${answer.status})`);
    return answer[kind]();
  }

  function student(set, steps) {
    const folder = `students/${set}/steps-${steps}`;
    if (!opened.has(folder)) opened.set(folder, open(folder, sets[set].decodes));
    return opened.get(folder);
  }

  async function open(folder, decodes) {
    say(`Loading ${folder}`);
    const session = async (name) =>
      ort.InferenceSession.create(await fetched(`${folder}/${name}.onnx`, "arrayBuffer"));
    const said = await fetched(`${folder}/student.json`, "json");
    const found = { said, net: await session("student") };
    if (decodes) found.decoder = await session("decoder");
    if (said.tokenizer) found.tokens = clipTokenizer(said.tokenizer);
    await sampled(found, new Float32Array(said.shape.reduce((a, b) => a * b)), condition(found), 0);
    return found; // warm: the first call of a network compiles it
  }

  function condition({ said, tokens }) {
    if (!tokens) return new ort.Tensor("int64", [BigInt(now.label)], [1]);
    const found = tokens(now.prompt);
    return new ort.Tensor("int64", found.map(BigInt), [1, found.length]);
  }

  /* DDIM from the noise z: the picture, and what its evaluations took. */
  async function sampled({ said, net, decoder }, z, cond, w) {
    const { t, alpha, sigma } = said;
    const tensor = (numbers, dims) => new ort.Tensor("float32", numbers, dims);
    const whole = [1, ...said.shape];
    const one = (number) => tensor([number], [1]);
    const began = performance.now();
    for (let i = 0; i + 1 < t.length; i++) {
      const given = { z: tensor(z, whole), t: one(t[i]), cond, w: one(w) };
      const v = (await net.run(given)).v.data;
      z = z.map((z, j) => {
        const x = alpha[i] * z - sigma[i] * v[j];
        const eps = sigma[i] * z + alpha[i] * v[j];
        return alpha[i + 1] * x + sigma[i + 1] * eps;
      });
    }
    const ms = performance.now() - began;
    if (!decoder) return { x: z, shape: said.shape, ms };
    const { x } = await decoder.run({ z: tensor(z, whole) });
    return { x: x.data, shape: x.dims.slice(1), ms };
  }

  /* ---- the page ---- */

  const say = (text) => (at("status").textContent = text);
  const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

  /* Channels [c, h, w] as a picture: grey for one, else the first three as red, green and blue. */
  function show(canvas, numbers, [c, h, w], spread) {
    [canvas.width, canvas.height] = [w, h];
    const image = new ImageData(w, h);
    for (let i = 0; i < h * w; i++) {
      for (let k = 0; k < 3; k++)
        image.data[4 * i + k] = 127.5 + spread * numbers[(c < 3 ? 0 : k * h * w) + i];
      image.data[4 * i + 3] = 255;
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  function showBrush(seen) {
    const [, h, w] = shape;
    const [left, top, size] = [brush.x / w - 1 / 8, brush.y / h - 1 / 8, 1 / 4];
    const percent = (part) => `${100 * part}%`;
    Object.assign(at("brush").style, {
      left: percent(left), top: percent(top), width: percent(size), height: percent(size),
    });
    at("brush").hidden = !seen;
  }

  let drawing = false;
  let wanted = false;
  async function draw() {
    wanted = true;
    if (drawing) return; // and the loop below draws what is wanted by then
    drawing = true;
    try {
      while (wanted) {
        wanted = false;
        await paint();
        await new Promise((next) => setTimeout(next)); // lets the page answer its reader
      }
    } catch (error) {
      say(`${error.message}. Load the page again.`);
    } finally {
      drawing = false;
    }
  }

  async function paint() {
    const { set, steps, w, label, prompt } = now;
    const found = await student(set, steps);
    if (shape === undefined || String(shape) !== String(found.said.shape)) {
      shape = found.said.shape;
      newNoise();
    }
    show(at("noise"), now.z, shape, 45);
    const cond = condition(found);
    const picture = await sampled(found, now.z, cond, w);
    show(at("picture"), picture.x, picture.shape, 127.5);
    const what = found.tokens ? prompt || "no prompt" : sets[set].names[label];
    const [calls, ms] = [found.said.t.length - 1, picture.ms];
    const cost = `${plural(calls, "evaluation")}, ${ms.toFixed(ms < 10 ? 1 : 0)} ms`;
    const teacher = sets[set].teacher;
    at("picture").setAttribute("aria-label", `${sets[set].title}: ${what}, w = ${w}, ${cost}`);
    at("caption").textContent = `${what}, w = ${w}`;
    at("student-cost").textContent = cost;
    at("student-bar").style.width = `${(100 * calls) / teacher}%`;
    const slow = ((teacher * ms) / calls / 1000).toFixed(1);
    at("teacher-cost").textContent = `${teacher} evaluations, about ${slow} s at this speed`;
    if (found.tokens) at("pieces").textContent = pieces(found, cond);
    Object.assign(now, { picture, drawn: [set, steps, w, label, prompt].join(" ") });
    say(`Drawn: ${what}, w = ${w}, ${cost}.`);
  }

  /* What the student reads: the words as it knows them. */
  function pieces({ said }, cond) {
    const words = Object.fromEntries(Object.entries(said.tokenizer.vocab).map(([a, b]) => [b, a]));
    const inner = Array.from(cond.data, Number).slice(1);
    const read = inner.slice(0, inner.indexOf(said.tokenizer.end));
    const full = read.length === said.tokenizer.length - 2 ? " (no more fits)" : "";
    return `It reads: ${read.map((id) => words[id].replace("</w>", "")).join(" · ")}${full}`;
  }

  function choices(name, labels, chosen, choose) {
    at(name).replaceChildren(
      ...labels.map((label, i) => {
        const [line, input] = [document.createElement("label"), document.createElement("input")];
        Object.assign(input, { type: "radio", name: `live-${name}`, checked: i === chosen });
        input.addEventListener("change", () => choose(i));
        line.append(input, label);
        return line;
      }),
    );
  }

  function useSet(set) {
    const about = sets[set];
    now.set = set;
    now.label = 0;
    if (!about.steps.includes(now.steps)) now.steps = about.steps[0];
    at("classes-of").hidden = about.decodes;
    at("prompt-of").hidden = !about.decodes;
    if (!about.decodes)
      choices("classes", about.names, now.label, (i) => {
        now.label = i;
        draw();
      });
    at("w").max = about.w_range[1];
    at("steps").max = about.steps.length - 1;
    at("steps").value = about.steps.indexOf(now.steps);
    sliders();
  }

  function sliders() {
    now.w = Number(at("w").value);
    now.steps = sets[now.set].steps[Number(at("steps").value)];
    at("w-said").textContent = now.w;
    at("steps-said").textContent = now.steps;
    at("steps").setAttribute("aria-valuetext", plural(now.steps, "step"));
    draw();
  }

  function usePrompt(prompt) {
    now.prompt = at("prompt").value = prompt;
    draw();
  }

  function paintWith(event) {
    const box = at("noise").getBoundingClientRect();
    const [, h, w] = shape;
    brush = {
      x: ((event.clientX - box.left) / box.width) * w,
      y: ((event.clientY - box.top) / box.height) * h,
    };
    repaint();
  }

  const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  function paintByKey(event) {
    const [, h, w] = shape;
    const move = MOVES[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    if (move) {
      brush.x = Math.min(w, Math.max(0, brush.x + (move[0] * w) / 8));
      brush.y = Math.min(h, Math.max(0, brush.y + (move[1] * h) / 8));
    } else repaint();
    showBrush(true);
  }

  function listen() {
    for (const slider of ["w", "steps"]) at(slider).addEventListener("input", sliders);
    at("prompt").addEventListener("input", (event) => usePrompt(event.target.value));
    at("seed").addEventListener("change", () => (newNoise(), draw()));
    at("anew").addEventListener("click", () => {
      at("seed").value = (Number(at("seed").value) + 1) % 1000000;
      newNoise();
      draw();
    });
    const field = at("noise");
    field.addEventListener("pointerdown", (event) => {
      field.setPointerCapture(event.pointerId);
      paintWith(event);
    });
    field.addEventListener("pointermove", (event) => event.buttons && paintWith(event));
    field.addEventListener("keydown", paintByKey);
    field.addEventListener("focus", () => showBrush(field.matches(":focus-visible")));
    field.addEventListener("blur", () => showBrush(false));
  }

  try {
    if (location.protocol === "file:")
      throw new Error("Browsers load models from a server only: run python -m http.server here");
    ort.env.wasm.numThreads = 1; // more need headers that static pages do not have
    ort.env.wasm.wasmPaths = HOME.href;
    sets = await fetched("students.json", "json");
    window.liveStudents = { now, sampled, student, condition }; // for those who look inside
    const names = Object.keys(sets);
    choices("sets", names.map((name) => sets[name].title), 0, (i) => useSet(names[i]));
    const prompts = sets.emoji.prompts.map((prompt) => {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: prompt });
      button.addEventListener("click", () => usePrompt(prompt));
      return button;
    });
    at("prompts").replaceChildren(...prompts);
    at("prompt").value = now.prompt;
    listen();
    useSet(names[0]);
  } catch (error) {
    say(`${error.message}.`);
  }
})();
