// The coordinator's API: whole lists, and what changes of them, as it changes.

const PAGES = 40;
const KINDS = {
  host: { path: "/v1/hosts", key: (one) => one.name },
  vm: { path: "/v1/vms", key: (one) => `${one.host}/${one.id}` },
  link: { path: "/v1/links", key: (one) => one.name },
  migration: { path: "/v1/migrations", key: (one) => one.id, pages: 1 },
  plan: { path: "/v1/plans", key: (one) => one.id, pages: 1 },
};
const POLL = 3000;
const MOST_WAIT = 30000;

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class Api {
  constructor(token) {
    this.token = token;
  }

  async ask(path, options = {}) {
    const headers = { authorization: `Bearer ${this.token}`, ...options.headers };
    const answer = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
    if (answer.ok) return answer;
    let why = `${answer.status} ${answer.statusText}`;
    try {
      why = (await answer.json()).detail ?? why;
    } catch {
      // No problem of ours: the status says it.
    }
    throw new Refused(answer.status, why);
  }

  async list({ path, pages = PAGES }) {
    const items = [];
    let after = null;
    for (let page = 0; page < pages; page += 1) {
      const query = new URLSearchParams({ limit: pages === 1 ? "200" : "1000" });
      if (after) query.set("after", after);
      const got = await (await this.ask(`${path}?${query}`)).json();
      items.push(...got.items);
      after = got.next;
      if (!after) break;
    }
    return items;
  }

  async cancel(id) {
    await this.ask(`/v1/migrations/${encodeURIComponent(id)}/wish`, {
      method: "POST",
      headers: { "content-type": "application/json", "idempotency-key": crypto.randomUUID() },
      body: JSON.stringify({ wish: "cancel" }),
    });
  }
}

// Everything that is known, by kind and key.
export class Fleet {
  constructor() {
    for (const kind of Object.keys(KINDS)) this[kind] = new Map();
  }

  async read(api) {
    const kinds = Object.entries(KINDS);
    const lists = await Promise.all(kinds.map(([, kind]) => api.list(kind)));
    kinds.forEach(([name, kind], nth) => {
      this[name] = new Map(lists[nth].map((one) => [kind.key(one), one]));
    });
  }

  take(name, data) {
    const kind = KINDS[name];
    if (!kind) return;
    if (data.gone) this[name].delete(kind.key(data));
    else this[name].set(kind.key(data), data);
  }
}

// The events of a stream of server-sent events (EventSource sends no Authorization).
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = { name: "", data: "", id: "" };
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (event.name) yield { ...event, data: event.data ? JSON.parse(event.data) : null };
        event = { ...event, name: "", data: "" };
      } else if (line.startsWith("event: ")) event.name = line.slice(7);
      else if (line.startsWith("data: ")) event.data += line.slice(6);
      else if (line.startsWith("id: ")) event.id = line.slice(4);
    }
  }
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}

function visible(signal) {
  return new Promise((resolve) => {
    if (!document.hidden || signal.aborted) return resolve();
    document.addEventListener("visibilitychange", () => resolve(), { once: true });
    signal.addEventListener("abort", () => resolve(), { once: true });
  });
}

// Keeps a fleet as it is until the signal: by events, or by asking again where they do not come through. `told` is called
// after each change, with how it came (`live`, `asking`) or that it did not (`lost`, and why).
export async function follow(api, fleet, signal, told) {
  let last = null;
  let wait = POLL;
  while (!signal.aborted) {
    try {
      const headers = last ? { "last-event-id": last } : {};
      const answer = await api.ask("/v1/events", { headers, signal }).catch((error) => {
        if (error instanceof Refused && [404, 429].includes(error.status)) return null;
        throw error;
      });
      if (!answer) {
        await fleet.read(api);
        told("asking");
        wait = POLL;
      } else {
        for await (const event of events(answer.body)) {
          // Everything anew, behind the stream's begin: nothing is missed between the two.
          if (event.name === "reset" || (event.name === "hello" && !last)) await fleet.read(api);
          else if (event.name !== "hello") fleet.take(event.name, event.data);
          last = event.id;
          wait = POLL;
          told("live");
        }
        // The stream has ended, as when a proxy closes what is old, or the coordinator.
        await pause(500, signal);
        continue;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused && [401, 403].includes(error.status)) throw error;
      told("lost", error.message);
      wait = Math.min(wait * 2, MOST_WAIT);
    }
    await pause(wait, signal);
    await visible(signal);
  }
}
