// Drives every operation of a request queue by Apify's own client for JavaScript, and prints what
// came back as one JSON object. The address, the token and the folder that has the package are
// the arguments.
import { createRequire, syncBuiltinESMExports } from 'node:module';
import zlib from 'node:zlib';

const [baseUrl, token, folder] = process.argv.slice(2);
// Counts the bodies that go out compressed.
let brotli = 0;
const { brotliCompress } = zlib;
zlib.brotliCompress = (...args) => {
    brotli += 1;
    return brotliCompress(...args);
};
syncBuiltinESMExports();

const { ApifyClient } = createRequire(`${folder}/package.json`)('apify-client');
const client = new ApifyClient({
    baseUrl,
    token,
    maxRetries: 8,
    minDelayBetweenRetriesMillis: 5,
});
const seen = {};

function request(key, fields = {}) {
    return { uniqueKey: key, url: `https://example.com/${key}`, ...fields };
}

async function failure(promise) {
    try {
        await promise;
    } catch (error) {
        return { status: error.statusCode, type: error.type };
    }
    return null;
}

async function queues() {
    const created = await client.requestQueues().getOrCreate('javascript');
    const again = await client.requestQueues().getOrCreate('javascript');
    const queue = client.requestQueue(created.id);
    const updated = await queue.update({ name: 'javascript-renamed' });
    const got = await queue.get();
    const byName = await client.requestQueue('me/javascript-renamed').get();
    const unnamed = await client.requestQueues().getOrCreate();
    const named = await client.requestQueues().list({ limit: 10, desc: true });
    const every = await client.requestQueues().list({ unnamed: true });
    await queue.delete();
    seen.queues = {
        same: [again.id, updated.id, got.id, byName.id].every((id) => id === created.id),
        createdAtIsDate: got.createdAt instanceof Date,
        name: got.name,
        named: named.items.map((item) => item.name),
        unnamed: every.items.filter((item) => item.id === unnamed.id).length,
        deleted: (await queue.get()) === undefined,
        afterDeletion: await failure(queue.listHead()),
    };
}

async function oneRequest(queue) {
    const sent = request('one|ž', {
        method: 'POST',
        payload: '{}',
        headers: { a: 'b' },
        userData: { label: 'X', deep: [1, null] },
    });
    const added = await queue.addRequest(sent);
    const twice = await queue.addRequest(sent, { forefront: true });
    const stored = await queue.getRequest(added.requestId);
    const updated = await queue.updateRequest({ ...stored, handledAt: new Date().toISOString() });
    const requeued = await queue.updateRequest({ ...stored, retryCount: 1 }, { forefront: true });
    const afterwards = await queue.getRequest(added.requestId);
    await queue.deleteRequest(added.requestId);
    const gone = (await queue.getRequest(added.requestId)) === undefined;
    seen.oneRequest = { added, twice, stored, updated, requeued, afterwards, gone };
}

async function batches(queue) {
    const keys = Array.from({ length: 60 }, (_, n) => `key-${n}`);
    const result = await queue.batchAddRequests(keys.map((key) => request(key)));
    const filler = { userData: { filler: 'x'.repeat(5000) } };
    const front = await queue.batchAddRequests([request('front', filler)], { forefront: true });
    const head = await queue.listHead({ limit: 3 });
    const pages = [];
    for await (const page of queue.paginateRequests({ maxPageLimit: 25 })) {
        pages.push(page.items.map((item) => item.uniqueKey));
    }
    const iterated = [];
    for await (const item of queue.listRequests({ limit: 30 })) iterated.push(item.uniqueKey);
    const deleted = await queue.batchDeleteRequests([{ uniqueKey: 'key-0' }, { id: head.items[0].id }]);
    seen.batches = {
        processed: result.processedRequests.map((item) => item.uniqueKey),
        unprocessed: [...result.unprocessedRequests, ...front.unprocessedRequests],
        head: head.items.map((item) => item.uniqueKey),
        pages,
        iterated,
        deleted: deleted.processedRequests.length,
        left: (await queue.get()).totalRequestCount,
        brotli,
    };
}

async function locks(queue, other) {
    await queue.batchAddRequests(['a', 'b', 'c', 'd'].map((key) => request(key)));
    const locked = await queue.listAndLockHead({ lockSecs: 60, limit: 3 });
    const [first, , third] = locked.items;
    const prolonged = await queue.prolongRequestLock(first.id, { lockSecs: 120, forefront: true });
    const refused = await failure(other.prolongRequestLock(first.id, { lockSecs: 60 }));
    const pending = await queue.listRequests({ filter: ['pending'] });
    const union = await queue.listRequests({ filter: ['pending', 'locked'] });
    await queue.deleteRequestLock(third.id, { forefront: true });
    const others = await other.listAndLockHead({ lockSecs: 60, limit: 1 });
    seen.locks = {
        locked: locked.items.map((item) => item.uniqueKey),
        lockSecs: locked.lockSecs,
        prolonged: prolonged.lockExpiresAt > first.lockExpiresAt,
        refused,
        pending: pending.items.map((item) => item.uniqueKey),
        union: union.items.length,
        others: others.items.map((item) => item.uniqueKey),
        unlocked: (await queue.unlockRequests()).unlockedCount,
        several: (await queue.get()).hadMultipleClients,
    };
}

async function fresh(clientKey) {
    const { id } = await client.requestQueues().getOrCreate();
    return [client.requestQueue(id, { clientKey }), client.requestQueue(id, { clientKey: 'other' })];
}

await queues();
await oneRequest((await fresh('me'))[0]);
await batches((await fresh('me'))[0]);
await locks(...(await fresh('me')));
seen.wrongToken = await failure(new ApifyClient({ baseUrl, token: 'wrong' }).requestQueues().list());
console.log(JSON.stringify(seen));
