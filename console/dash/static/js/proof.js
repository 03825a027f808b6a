// Checking a record against the signed checkpoint, in the page: the bytes are hashed here, not taken at anybody's word.
//
// Leaf and node hashes are those of RFC 6962, sections 2.1 and 2.1.1. The checkpoint is a signed note; where the browser has Ed25519,
// its signature is checked as well.

const bytesOf = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
const fromHex = (hex) => Uint8Array.from(hex.match(/../g) || [], (x) => parseInt(x, 16));
export const toHex = (bytes) => Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");

async function sha256(...parts) {
  const size = parts.reduce((n, p) => n + p.length, 0);
  const all = new Uint8Array(size);
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return new Uint8Array(await crypto.subtle.digest("SHA-256", all));
}

export const leafHash = (record) => sha256(Uint8Array.of(0), record);
export const nodeHash = (left, right) => sha256(Uint8Array.of(1), left, right);

/** The root that a leaf and its path give, with each step: [{side, sibling, hash}]. Throws when the path has the wrong length. */
export async function climb(leaf, index, size, path) {
  let at = BigInt(index);
  let last = BigInt(size) - 1n;
  let found = leaf;
  const steps = [];
  for (const sibling of path) {
    if (last === 0n) throw new Error("the path is longer than the tree is high");
    const left = (at & 1n) === 1n || at === last;
    if (left) {
      found = await nodeHash(sibling, found);
      while ((at & 1n) === 0n && at !== 0n) {
        at >>= 1n;
        last >>= 1n;
      }
    } else found = await nodeHash(found, sibling);
    at >>= 1n;
    last >>= 1n;
    steps.push({ side: left ? "left" : "right", sibling: toHex(sibling), hash: toHex(found) });
  }
  if (last !== 0n) throw new Error("the path is shorter than the tree is high");
  return { root: found, steps };
}

function parseNote(note) {
  const gap = note.indexOf("\n\n");
  const text = note.slice(0, gap + 1);
  const [origin, size, root] = text.split("\n");
  const line = note.slice(gap + 2).trim().split(" ");
  return { text, origin, size: Number(size), root: bytesOf(root), signer: line[1], signature: bytesOf(line[2]) };
}

async function signed(note, key) {
  const [name, id, encoded] = split(key);
  const raw = bytesOf(encoded);
  if (name !== note.origin || note.signer !== note.origin) return { ok: false, how: "the note is signed under another name" };
  if (toHex(note.signature.slice(0, 4)) !== id) return { ok: false, how: "the signature names another key" };
  try {
    const imported = await crypto.subtle.importKey("raw", raw.slice(1), { name: "Ed25519" }, false, ["verify"]);
    const ok = await crypto.subtle.verify("Ed25519", imported, note.signature.slice(4), new TextEncoder().encode(note.text));
    return { ok, how: ok ? "Ed25519 signature holds" : "the Ed25519 signature does not hold" };
  } catch (error) {
    if (error.name === "NotSupportedError") return { ok: null, how: "this browser has no Ed25519: the signature was not checked" };
    return { ok: false, how: `the key cannot be used: ${error.message}` };
  }
}

function split(key) {
  const first = key.indexOf("+");
  const second = key.indexOf("+", first + 1);
  return [key.slice(0, first), key.slice(first + 1, second), key.slice(second + 1)];
}

/** Check a document of `recuros kfs prove`. Returns what was found, step by step; `ok` is true only when the root is the signed one. */
export async function check(doc) {
  const record = bytesOf(doc.record);
  const leaf = await leafHash(record);
  const note = parseNote(doc.checkpoint);
  const climbed = await climb(leaf, doc.seq, note.size, doc.inclusion.map(fromHex));
  const same = toHex(climbed.root) === toHex(note.root);
  const signature = await signed(note, doc.key);
  return { ok: same && signature.ok !== false, same, signature, leaf: toHex(leaf), root: toHex(climbed.root), signedRoot: toHex(note.root), size: note.size, origin: note.origin, steps: climbed.steps, record: decode(record) };
}

/** msgpack to values, for what records hold: the page shows the fields of the very bytes that were hashed. */
export function decode(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const text = new TextDecoder("utf-8", { fatal: true });
  let at = 0;
  const uint = (size) => {
    const value = size === 1 ? view.getUint8(at) : size === 2 ? view.getUint16(at) : size === 4 ? view.getUint32(at) : Number(view.getBigUint64(at));
    at += size;
    return value;
  };
  const int = (size) => {
    const value = size === 1 ? view.getInt8(at) : size === 2 ? view.getInt16(at) : size === 4 ? view.getInt32(at) : Number(view.getBigInt64(at));
    at += size;
    return value;
  };
  const take = (size) => {
    if (at + size > bytes.length) throw new Error("the record is cut short");
    at += size;
    return bytes.subarray(at - size, at);
  };
  const list = (size) => Array.from({ length: size }, value);
  const map = (size) => Object.fromEntries(Array.from({ length: size }, () => [value(), value()]));
  function value() {
    const head = uint(1);
    if (head < 0x80) return head;
    if (head < 0x90) return map(head & 15);
    if (head < 0xa0) return list(head & 15);
    if (head < 0xc0) return text.decode(take(head & 31));
    if (head >= 0xe0) return head - 256;
    switch (head) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: case 0xc5: case 0xc6: return toHex(take(uint(1 << (head - 0xc4))));
      case 0xca: at += 4; return view.getFloat32(at - 4);
      case 0xcb: at += 8; return view.getFloat64(at - 8);
      case 0xcc: case 0xcd: case 0xce: case 0xcf: return uint(1 << (head - 0xcc));
      case 0xd0: case 0xd1: case 0xd2: case 0xd3: return int(1 << (head - 0xd0));
      case 0xd9: case 0xda: case 0xdb: return text.decode(take(uint(1 << (head - 0xd9))));
      case 0xdc: case 0xdd: return list(uint(head === 0xdc ? 2 : 4));
      case 0xde: case 0xdf: return map(uint(head === 0xde ? 2 : 4));
      default: throw new Error(`byte ${head} is not part of a record`);
    }
  }
  const found = value();
  if (at !== bytes.length) throw new Error("bytes are left over after the record");
  return found;
}
