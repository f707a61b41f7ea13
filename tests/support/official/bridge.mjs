// Calls Apify's client for JavaScript as each line on the standard input says, and answers with a
// line of JSON: what came back, or the status and type of the error. The argument is the folder
// that has the package.
import { createRequire } from 'node:module';
import readline from 'node:readline';

const { ApifyClient } = createRequire(`${process.argv[2]}/package.json`)('apify-client');
const retries = { maxRetries: 8, minDelayBetweenRetriesMillis: 5 };

async function all(pages) {
    const found = [];
    for await (const page of pages) found.push(...(page.items ?? [page]));
    return found;
}

async function call({ baseUrl, token, path, method, args, iterates }) {
    const client = new ApifyClient({ baseUrl, token, ...retries });
    const target = path.reduce((object, [step, ...given]) => object[step](...given), client);
    const found = target[method](...args);
    return iterates ? all(found) : found;
}

for await (const line of readline.createInterface({ input: process.stdin })) {
    const answer = await call(JSON.parse(line)).then(
        (value) => ({ value }),
        ({ statusCode, type, message }) => ({ error: [statusCode, type, message] }),
    );
    console.log(JSON.stringify(answer));
}
