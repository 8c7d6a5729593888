// One matrix-js-sdk device with its Rust crypto, driven by JSON lines: the commands of
// `nio_client.py`, and key backup (`set_up_backup`, `restore_backup`, `history`) besides.

import { createInterface } from "node:readline";

// Standard output carries answers only; the SDK logs to the console.
for (const level of ["log", "info", "debug", "trace"]) console[level] = console.error;

const sdk = await import("matrix-js-sdk");
const { CryptoEvent, decodeRecoveryKey } = await import("matrix-js-sdk/lib/crypto-api/index.js");

const DEFAULT_TIMEOUT_S = 60;
const SIGNALS = [
  sdk.ClientEvent.Sync,
  sdk.ClientEvent.Room,
  sdk.RoomEvent.Timeline,
  sdk.RoomEvent.Receipt,
  sdk.RoomEvent.Redaction,
  sdk.RoomEvent.MyMembership,
  sdk.RoomMemberEvent.Membership,
  sdk.RoomMemberEvent.Typing,
  sdk.MatrixEventEvent.Decrypted,
  sdk.ThreadEvent.NewReply,
  sdk.ThreadEvent.Update,
];

let client;
let password;
let secretStorageKey; // what the user would type when asked for the recovery key

/** Waits until `condition()` is truthy; looked at after everything that a sync brings. */
async function until(what, condition, timeoutS = DEFAULT_TIMEOUT_S) {
  const first = await condition();
  if (first) return first;
  return await new Promise((resolve, reject) => {
    const done = (settle, value) => {
      clearTimeout(timer);
      for (const signal of SIGNALS) client.off(signal, look);
      settle(value);
    };
    const look = () => {
      try {
        const found = condition();
        if (found) done(resolve, found);
      } catch (error) {
        done(reject, error);
      }
    };
    const timer = setTimeout(
      () => done(reject, new Error(`waited ${timeoutS} s for ${what}`)),
      timeoutS * 1000,
    );
    for (const signal of SIGNALS) client.on(signal, look);
  });
}

/** What is known of a room, its threads included, oldest first; the SDK keeps these apart. */
function events(room) {
  const known = client.getRoom(room);
  const threads = known?.getThreads().flatMap((thread) => thread.timeline) ?? [];
  const all = [...(known?.getLiveTimeline().getEvents() ?? []), ...threads];
  const once = new Map(all.map((event) => [event.getId(), event]));
  return [...once.values()].sort((a, b) => a.getTs() - b.getTs());
}

const find = (room, matches) => events(room).find(matches);

/** Waits until the event with `id` has arrived. */
const arrived = (room, id) => until(`event ${id}`, () => find(room, (e) => e.getId() === id));

/** Answers the password stage of user-interactive authentication. */
async function withPassword(makeRequest) {
  const identifier = { type: "m.id.user", user: client.getUserId() };
  try {
    return await makeRequest(null);
  } catch (error) {
    if (!error.data?.flows) throw error;
    const session = error.data.session;
    return await makeRequest({ type: "m.login.password", identifier, password, session });
  }
}

/**
 * Waits until something has been sent that may stand in a thread. A sync may bring it before its
 * request is answered; the SDK does not find its own echo then.
 */
async function inThread(sending) {
  try {
    await sending;
  } catch (error) {
    if (!error.message.includes("not a local echo")) throw error;
  }
}

const commands = {
  async start({ homeserver, user, password: secret, device_name }) {
    password = secret;
    const guest = sdk.createClient({ baseUrl: homeserver });
    const session = await guest.loginRequest({
      type: "m.login.password",
      identifier: { type: "m.id.user", user },
      password,
      initial_device_display_name: device_name,
    });
    client = sdk.createClient({
      baseUrl: homeserver,
      userId: session.user_id,
      deviceId: session.device_id,
      accessToken: session.access_token,
      cryptoCallbacks: {
        getSecretStorageKey: async ({ keys }) => [Object.keys(keys)[0], secretStorageKey],
        cacheSecretStorageKey: (_id, _info, key) => (secretStorageKey = key),
      },
    });
    await client.initRustCrypto({ useIndexedDB: false });
    await client.startClient({
      initialSyncLimit: 20,
      lazyLoadMembers: true,
      pollTimeout: 10_000,
      threadSupport: true,
    });
    await until("the first sync", () => client.isInitialSyncComplete());
    return { user_id: session.user_id, device_id: session.device_id };
  },

  async create_encrypted_room({ name, invite }) {
    const encryption = {
      type: "m.room.encryption",
      state_key: "",
      content: { algorithm: "m.megolm.v1.aes-sha2" },
    };
    const { room_id: room } = await client.createRoom({
      name,
      invite,
      preset: sdk.Preset.PrivateChat,
      initial_state: [encryption],
    });
    await until("the new room", () => client.getRoom(room)?.hasEncryptionStateEvent());
    return { room };
  },

  async wait_invite({ room }) {
    const me = client.getUserId();
    await until("an invitation", () => client.getRoom(room)?.getMyMembership() === "invite");
    return { inviter: client.getRoom(room).getMember(me).events.member.getSender() };
  },

  async join({ room }) {
    await client.joinRoom(room);
    await until("the joined room", () => client.getRoom(room)?.getMyMembership() === "join");
    return {};
  },

  async wait_member({ room, user }) {
    await until(
      `${user} in the room`,
      () => client.getRoom(room)?.getMember(user)?.membership === "join",
    );
    return {};
  },

  async send_text({ room, body }) {
    const sent = await client.sendTextMessage(room, body);
    return { event_id: sent.event_id };
  },

  async reply_in_thread({ room, root, body }) {
    const relation = {
      "rel_type": "m.thread",
      "event_id": root,
      "is_falling_back": true,
      "m.in_reply_to": { event_id: root },
    };
    const content = { "msgtype": "m.text", body, "m.relates_to": relation };
    await inThread(client.sendEvent(room, "m.room.message", content));
    return {};
  },

  async react({ room, event, key }) {
    const relation = { rel_type: "m.annotation", event_id: event, key };
    const sent = await client.sendEvent(room, "m.reaction", { "m.relates_to": relation });
    return { event_id: sent.event_id };
  },

  async redact({ room, event }) {
    await inThread(client.redactEvent(room, event));
    return {};
  },

  async wait_text({ room, body }) {
    const found = await until(`the text ${body}`, () =>
      find(room, (e) => e.getContent().body === body),
    );
    const relation = found.getRelation() ?? found.getWireContent()["m.relates_to"] ?? {};
    return {
      event_id: found.getId(),
      sender: found.getSender(),
      encrypted: found.isEncrypted() && !found.isDecryptionFailure(),
      thread: relation.rel_type === "m.thread" ? relation.event_id : null,
    };
  },

  async wait_reaction({ room, event, key }) {
    const found = await until(`the reaction ${key}`, () =>
      find(room, (e) => {
        const relation = e.getContent()["m.relates_to"] ?? {};
        return e.getType() === "m.reaction" && relation.event_id === event && relation.key === key;
      }),
    );
    return { sender: found.getSender() };
  },

  async wait_redaction({ room, event }) {
    const found = await until(`the redaction of ${event}`, () =>
      find(room, (e) => e.getId() === event && e.isRedacted()),
    );
    return { sender: found.getUnsigned().redacted_because.sender };
  },

  async mark_read({ room, event }) {
    const read = await arrived(room, event);
    await client.setRoomReadMarkers(room, event, read);
    return {};
  },

  async wait_read({ room, event, user }) {
    const read = await arrived(room, event);
    await until(`a receipt of ${user}`, () =>
      client
        .getRoom(room)
        .getReceiptsForEvent(read)
        .some((receipt) => receipt.userId === user),
    );
    return {};
  },

  async set_typing({ room, typing }) {
    await client.sendTyping(room, typing, 30_000);
    return {};
  },

  async wait_typing({ room, user, typing }) {
    await until(
      `${user} typing=${typing}`,
      () => client.getRoom(room).getMember(user)?.typing === typing,
    );
    return {};
  },

  /** Cross-signing, secret storage and a key backup; returns the recovery key. */
  async set_up_backup() {
    const crypto = client.getCrypto();
    const recovery = await crypto.createRecoveryKeyFromPassphrase();
    await crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys: withPassword });
    await crypto.bootstrapSecretStorage({
      createSecretStorageKey: async () => recovery,
      setupNewSecretStorage: true,
      setupNewKeyBackup: true,
    });
    await crypto.checkKeyBackupAndEnable();
    return { recovery: recovery.encodedPrivateKey };
  },

  /** Waits until the backup on the server holds `sessions` sessions. */
  async wait_backed_up({ sessions }) {
    // Asked directly: the SDK remembers the count of its first look.
    const version = () => client.http.authedRequest(sdk.Method.Get, "/room_keys/version");
    const uploaded = async () => (await version()).count >= sessions;
    await new Promise((resolve, reject) => {
      const look = async () => {
        if (await uploaded()) done(resolve);
      };
      const done = (settle, value) => {
        clearTimeout(timer);
        client.off(CryptoEvent.KeyBackupSessionsRemaining, look);
        settle(value);
      };
      const late = new Error("the backup did not fill in time");
      const timer = setTimeout(() => done(reject, late), DEFAULT_TIMEOUT_S * 1000);
      client.on(CryptoEvent.KeyBackupSessionsRemaining, look);
      look().catch((error) => done(reject, error));
    });
    return {};
  },

  /** Opens secret storage with the recovery key and imports every backed-up session. */
  async restore_backup({ recovery }) {
    const crypto = client.getCrypto();
    secretStorageKey = decodeRecoveryKey(recovery);
    // The import compares with the public keys, so these have to be known first.
    await crypto.userHasCrossSigningKeys(client.getUserId(), true);
    await crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys: withPassword });
    await crypto.loadSessionBackupPrivateKeyFromSecretStorage();
    const backup = await crypto.checkKeyBackupAndEnable();
    const { imported, total } = await crypto.restoreKeyBackup();
    return { imported, total, trusted: backup !== null && backup.trustInfo.trusted };
  },

  /** The decrypted texts of a room, oldest first, as far back as there is history. */
  async history({ room }) {
    const known = client.getRoom(room);
    while (known.oldState.paginationToken) await client.scrollback(known, 50);
    await known.createThreadsTimelineSets();
    await known.fetchRoomThreads();
    for (const thread of known.getThreads()) {
      while (await client.paginateEventTimeline(thread.liveTimeline, { backwards: true }));
    }
    const texts = [];
    for (const event of events(room)) {
      await client.decryptEventIfNeeded(event);
      if (event.getType() === "m.room.message" && !event.isRedacted()) {
        texts.push(event.isDecryptionFailure() ? "(not decrypted)" : event.getContent().body);
      }
    }
    return { texts };
  },

  async logout() {
    await client.logout(true);
    const gone = await client.whoami().then(
      () => false,
      (error) => error.errcode === "M_UNKNOWN_TOKEN",
    );
    return { token_is_gone: gone };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { id, do: name, ...request } = JSON.parse(line);
  let answer;
  try {
    if (!Object.hasOwn(commands, name)) throw new Error(`unknown command ${name}`);
    answer = { id, ok: await commands[name](request) };
  } catch (error) {
    console.error(name, "failed:", error);
    answer = { id, error: `${error.name}: ${error.message}` };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
client?.stopClient();
process.exit(0);
