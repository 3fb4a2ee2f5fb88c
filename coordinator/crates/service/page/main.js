// The page: who asks, what is shown, and that it stays so.

import { Api, Fleet, Refused, follow } from "./api.js";
import { bars } from "./chart.js";
import { element, table } from "./dom.js";
import { bytes, money, percent, rate, time, when } from "./units.js";

const KEY = "novaferry-token";
const MOST_VMS = 200;
const MOST_BARS = 40;
const OPEN = new Set(["queued", "moving", "cutting-over", "proving", "held", "undoing", "in-doubt", "destination-lost"]);
const TONES = {
  connected: "good", running: "good", completed: "good", up: "good", done: "good",
  away: "warn", held: "warn", undoing: "warn", degraded: "warn", stopping: "warn", undone: "warn",
  revoked: "bad", "in-doubt": "bad", "destination-lost": "bad", lost: "bad", refused: "bad", failed: "bad", blocked: "bad", down: "bad",
};

const by = (id) => document.getElementById(id);
const state = (name) => ({ text: name, tone: TONES[name] });
const fleet = new Fleet();
let api = null;
let ending = null;
let drawn = false;

const name = (vm, host) => {
  const found = fleet.vm.get(`${host}/${vm}`);
  return found?.name && found.name !== vm ? `${found.name} (${vm})` : vm;
};
const stands = (host) => (host.revoked ? "revoked" : host.connected ? "connected" : "away");
const progress = (one) => one.at_source ?? {};
const report = (one) => one.at_source?.report?.report ?? {};
const expected = (one) => one.at_source?.report?.report?.predicted ?? null;

function share(one) {
  const { disk_done: disk = 0, disk_total: disks = 0, ram_remaining: left = 0, ram_total: ram = 0, state: phase } = progress(one);
  if (!["mirroring", "pre-copy"].includes(phase)) return null;
  if (phase === "mirroring") return { text: "disks", part: percent(disk, disks) };
  return { text: "memory", part: percent(ram - left, ram) };
}

function moves(one) {
  const found = share(one);
  if (!found) return { text: "" };
  const part = Math.floor(found.part);
  const label = `${found.text} ${part} %`;
  return {
    key: label,
    make: () => element("div", {}, element("progress", { max: 100, value: part, "aria-label": `${one.vm}: ${label}` }), element("div", {}, label)),
  };
}

// What arrived must be proven; what is not says why.
function standing(one) {
  if (!one.unproven) return state(one.state);
  return { text: `${one.state}: not proven`, tone: "bad", title: one.unproven };
}

function phase(one) {
  if (!progress(one).waits) return progress(one).state;
  const until = one.options.cutover_at ? when(one.options.cutover_at) : "it is told to leave";
  return { text: `in step, waits until ${until}`, title: one.options.cutover_at ?? undefined };
}

function ask(one) {
  const dialog = by("ask");
  by("ask-title").textContent = `Cancel the migration of ${one.vm}?`;
  by("ask-text").textContent =
    `It goes from ${one.source} to ${one.destination}. The guest stays, or goes back, where it was; once it runs at its destination, this is refused.`;
  by("ask-error").textContent = "";
  by("ask-yes").onclick = async () => {
    try {
      await api.cancel(one.id);
      dialog.close();
    } catch (error) {
      by("ask-error").textContent = error.message;
    }
  };
  by("ask-no").onclick = () => dialog.close();
  dialog.showModal();
}

const RUNNING = [
  { head: "VM", of: (one) => name(one.vm, one.source) },
  { head: "From", of: (one) => one.source, short: true },
  { head: "To", of: (one) => one.destination, short: true },
  { head: "State", of: standing, short: true },
  { head: "Phase", of: phase, short: true },
  { head: "Progress", of: moves },
  { head: "Rate", of: (one) => rate(progress(one).rate), number: true },
  { head: "Expected pause", of: (one) => time(progress(one).expected_downtime_ms || expected(one)?.downtime_ms || one.estimate?.downtime_ms || NaN), number: true },
  { head: "Link", of: (one) => one.link },
  { head: "Since", of: (one) => when(one.created), short: true },
  {
    head: "",
    of: (one) => ({
      key: "cancel",
      make: () => {
        const button = element("button", { type: "button", class: "danger", "aria-label": `Cancel the migration of ${one.vm}` }, "Cancel");
        button.addEventListener("click", () => ask(fleet.migration.get(one.id) ?? one));
        return button;
      },
    }),
  },
];

const HOSTS = [
  { head: "Host", of: (host) => host.name },
  { head: "Site", of: (host) => host.site },
  { head: "State", of: (host) => state(stands(host)), short: true },
  { head: "VMs", of: (host) => host.observed?.vms?.length ?? 0, number: true },
  { head: "Memory free", of: (host) => `${bytes(host.observed?.memory_available_bytes)} of ${bytes(host.observed?.memory_bytes)}`, number: true },
  { head: "CPUs", of: (host) => host.observed?.processors || "", number: true },
  { head: "Disk free", of: (host) => (host.observed?.pools ?? []).map((pool) => `${pool.name} ${bytes(pool.free_bytes)}`).join(", ") },
  { head: "QEMU", of: (host) => host.observed?.qemu, short: true },
  { head: "Agent", of: (host) => host.observed?.version, short: true },
  { head: "Heard of", of: (host) => (host.connected ? "now" : when(host.seen)), short: true },
];

const VMS = [
  { head: "VM", of: (vm) => vm.name || vm.id },
  { head: "Id", of: (vm) => vm.id },
  { head: "Host", of: (vm) => vm.host },
  { head: "State", of: (vm) => ({ text: vm.state, tone: vm.state === "running" ? "good" : null }), short: true },
  { head: "Memory", of: (vm) => bytes(vm.memory_bytes), number: true },
  { head: "CPUs", of: (vm) => vm.processors || "", number: true },
  { head: "Moves", of: (vm) => (vm.reason ? `${vm.access}: ${vm.reason}` : vm.access) },
];

const carried = (link) => {
  const used = [...fleet.migration.values()].filter((one) => one.link === link.name && OPEN.has(one.state));
  return { count: used.length, rate: used.reduce((sum, one) => sum + (progress(one).rate || 0), 0) };
};
const LINKS = [
  { head: "Link", of: (link) => link.name },
  { head: "Between", of: (link) => link.sites.join(" and ") },
  { head: "Kind", of: (link) => link.kind, short: true },
  { head: "State", of: (link) => state(link.state), short: true },
  { head: "Open", of: (link) => (link.open ? "yes" : { text: `no, until ${when(link.until)}`, tone: "warn" }) },
  { head: "Round trip", of: (link) => (link.measured ? `${(link.measured.rtt_us / 1000).toFixed(1)} ms` : ""), number: true },
  { head: "Loss", of: (link) => (link.measured ? `${(link.measured.loss_ppm / 1e4).toFixed(2)} %` : ""), number: true },
  { head: "Carries", of: (link) => rate(link.measured?.rate ?? link.capacity), number: true },
  { head: "Carries now", of: (link) => (carried(link).count ? `${rate(carried(link).rate)} in ${carried(link).count}` : ""), number: true },
  { head: "Cap", of: (link) => rate(link.cap), number: true },
  { head: "A GB", of: (link) => money(link.price?.per_gb_micros ?? 0, link.price?.currency), number: true },
];

const PLANS = [
  { head: "Plan", of: (plan) => plan.id.slice(0, 8), short: true },
  { head: "State", of: (plan) => state(plan.state), short: true },
  { head: "VMs", of: (plan) => plan.steps.length, number: true },
  { head: "Done", of: (plan) => plan.steps.filter((step) => step.state === "done").length, number: true },
  { head: "What stands against it", of: (plan) => [...plan.blocked, ...plan.steps.map((step) => step.why).filter(Boolean)].join("; ") },
  { head: "Expected time", of: (plan) => time(plan.total?.duration_ms), number: true },
  { head: "Expected data", of: (plan) => bytes(plan.total?.bytes), number: true },
  { head: "By", of: (plan) => plan.by },
  { head: "Made", of: (plan) => when(plan.created), short: true },
];

const HISTORY = [
  { head: "VM", of: (one) => one.vm },
  { head: "From", of: (one) => one.source, short: true },
  { head: "To", of: (one) => one.destination, short: true },
  { head: "State", of: (one) => ({ ...state(one.state), title: one.refusal ?? undefined }), short: true },
  { head: "Why not", of: (one) => one.refusal ?? "" },
  { head: "Time", of: (one) => time(report(one).total_ms), number: true },
  { head: "Expected time", of: (one) => time(expected(one)?.total_ms), number: true },
  { head: "Pause", of: (one) => time(report(one).downtime_ms), number: true },
  { head: "Expected pause", of: (one) => time(expected(one)?.downtime_ms), number: true },
  { head: "Data", of: (one) => bytes((report(one).ram_wire ?? NaN) + (report(one).disk_wire ?? NaN)), number: true },
  { head: "Proof", of: (one) => (one.proof ? `${one.proof.disks.length} disks, signed by ${one.proof.by}` : "") },
  { head: "Link", of: (one) => one.link },
  { head: "Ended", of: (one) => when(one.changed), short: true },
];

const place = (id) => by(id).querySelector(".table");

function sums(open) {
  const hosts = [...fleet.host.values()];
  const connected = hosts.filter((host) => stands(host) === "connected").length;
  const running = [...fleet.vm.values()].filter((vm) => vm.state === "running").length;
  const doubt = open.filter((one) => ["in-doubt", "destination-lost"].includes(one.state)).length;
  const figures = [
    ["Hosts", connected, `of ${hosts.length} connected`],
    ["Sites", new Set(hosts.map((host) => host.site)).size, ""],
    ["VMs", running, `of ${fleet.vm.size} running`],
    ["Migrations", open.length, doubt ? `${doubt} need a decision` : "running"],
  ];
  const list = by("sums");
  const key = JSON.stringify(figures);
  if (list.shownAs === key) return;
  list.shownAs = key;
  list.replaceChildren(...figures.map(([head, figure, more]) =>
    element("div", {}, element("dt", {}, head), element("dd", {}, `${figure} `, element("small", {}, more)))));
}

function draw() {
  drawn = false;
  const newest = (a, b) => (a.created < b.created ? 1 : -1);
  const migrations = [...fleet.migration.values()].sort(newest);
  const open = migrations.filter((one) => OPEN.has(one.state) && !one.options.dry_run);
  sums(open);
  table(place("running"), `${open.length} running`, RUNNING, open, (one) => one.id, "No migration runs.");
  const hosts = [...fleet.host.values()].sort((a, b) => a.name.localeCompare(b.name));
  table(place("hosts"), hosts.length === 1 ? "One host" : `${hosts.length} hosts`, HOSTS, hosts, (host) => host.name, "No host has joined. `novaferry host token` lets one in.");
  const wanted = by("vm-filter").value.toLowerCase();
  const fits = (vm) => [vm.name, vm.id, vm.host, vm.state].some((text) => text.toLowerCase().includes(wanted));
  const vms = [...fleet.vm.values()].filter(fits).sort((a, b) => (a.name || a.id).localeCompare(b.name || b.id));
  const shown = vms.slice(0, MOST_VMS);
  const more = vms.length > shown.length ? `The first ${shown.length} of ${vms.length}; say more of the name to see the others` : (vms.length === 1 ? "One virtual machine" : `${vms.length} virtual machines`);
  table(place("vms"), more, VMS, shown, (vm) => `${vm.host}/${vm.id}`, wanted ? "None is like that." : "No host has a VM.");
  const links = [...fleet.link.values()].sort((a, b) => a.name.localeCompare(b.name));
  table(place("links"), links.length === 1 ? "One link" : `${links.length} links`, LINKS, links, (link) => link.name, "No link is declared: moves take the hosts' own addresses.");
  const plans = [...fleet.plan.values()].sort(newest).slice(0, 20);
  table(place("plans"), "The newest 20", PLANS, plans, (plan) => plan.id, "There is no plan.");
  const ended = migrations.filter((one) => !OPEN.has(one.state)).slice(0, 100);
  table(place("history"), "The newest 100 that ended", HISTORY, ended, (one) => one.id, "Nothing has moved yet.");
  const arrived = ended.filter((one) => one.state === "completed" && Number.isFinite(report(one).total_ms)).slice(0, MOST_BARS).reverse();
  const figure = (field, scale) => arrived
    .filter((one) => Number.isFinite(report(one)[field]))
    .map((one) => ({ name: one.vm, took: report(one)[field] / scale, expected: expected(one) ? expected(one)[field] / scale : null }));
  bars(by("pauses"), figure("downtime_ms", 1), "ms");
  bars(by("times"), figure("total_ms", 1000), "s");
}

function changed() {
  if (drawn) return;
  drawn = true;
  setTimeout(() => requestAnimationFrame(draw), 100);
}

let said = "";
let heard = null;
function told(how, why) {
  const live = by("live");
  if (how !== "lost") heard = new Date();
  const text = {
    live: "Live",
    asking: "Asked every few seconds",
    lost: `Connection lost (${why}); shown as of ${heard ? heard.toLocaleTimeString() : "never"}`,
  }[how];
  live.classList.toggle("lost", how === "lost");
  // Said once, not with every change.
  if (text !== said) {
    said = text;
    live.textContent = text;
  }
  changed();
}

function enter(why) {
  ending?.abort();
  by("fleet").hidden = true;
  by("leave").hidden = true;
  by("enter").hidden = false;
  by("token-error").textContent = why;
  by("live").textContent = "";
  by("token").focus();
}

async function show(token) {
  api = new Api(token);
  ending = new AbortController();
  try {
    await fleet.read(api);
    sessionStorage.setItem(KEY, token);
    by("enter").hidden = true;
    by("fleet").hidden = false;
    by("leave").hidden = false;
    draw();
    await follow(api, fleet, ending.signal, told);
  } catch (error) {
    if (error instanceof Refused && [401, 403].includes(error.status)) {
      sessionStorage.removeItem(KEY);
      enter(error.message);
    } else {
      enter(`The coordinator does not answer: ${error.message}`);
    }
  }
}

by("enter").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = by("token").value.trim();
  by("token").value = "";
  by("token-error").textContent = "";
  if (token) show(token);
});
by("leave").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  enter("");
});
by("vm-filter").addEventListener("input", changed);

fetch("/v1/health").then((answer) => answer.json()).then((health) => {
  by("version").textContent = health.version;
}, () => {});
const kept = sessionStorage.getItem(KEY);
if (kept) show(kept);
else enter("");
