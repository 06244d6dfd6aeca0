// An answer as it is made: the server's events, and the counts of what the draft did.

// The JSON of each event of a response. Throws what the server says of a failure.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const blocks = held.split("\n\n");
    held = blocks.pop();
    for (const block of blocks) {
      if (!block.startsWith("data: ")) continue; // a sign of life
      const data = block.slice(6);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

export async function failure(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `status ${response.status}`;
  }
}

// Counts over the cycles of an answer; the first step, the prompt's pass, is none.
export class Counts {
  constructor() {
    this.cycles = 0;
    this.accepted = 0;
    this.tokens = 0;
    this.asked = [];
    this.stood = [];
    this.began = undefined;
  }

  add(step) {
    if (this.began === undefined) {
      this.began = performance.now();
      return;
    }
    if (!step.token_ids.length) return;
    this.cycles += 1;
    this.accepted += step.accepted;
    this.tokens += step.token_ids.length;
    for (let place = 0; place < step.proposed; place += 1) {
      this.asked[place] = (this.asked[place] ?? 0) + 1;
      this.stood[place] = (this.stood[place] ?? 0) + (step.accepted > place ? 1 : 0);
    }
    this.seconds = (performance.now() - this.began) / 1000;
  }

  get speed() {
    return this.seconds ? this.tokens / this.seconds : 0;
  }

  get length() {
    return this.cycles ? 1 + this.accepted / this.cycles : 1;
  }

  get positions() {
    return this.asked.map((asked, place) => this.stood[place] / asked);
  }
}
