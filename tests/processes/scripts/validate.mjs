// Prints what Apify's own JSON schemas say of the Actor's files in each folder given, by file.
import { createRequire } from 'node:module';

const installed = createRequire(`${process.cwd()}/`);
const { default: Ajv } = installed('ajv/dist/2019');
const schemas = Object.values(installed('@apify/json_schemas')).filter((each) => each.$id);
const ajv = new Ajv({ schemas, strict: false });
ajv.addMetaSchema(installed('ajv/dist/refs/json-schema-draft-07.json'));
const said = process.argv.slice(2).map((folder) => {
    const errors = {};
    for (const [file, schema] of [['actor.json', 'actor'], ['input_schema.json', 'input']]) {
        const valid = ajv.getSchema(`https://apify.com/schemas/v1/${schema}.json`);
        valid(installed(`${folder}/${file}`));
        errors[file] = valid.errors;
    }
    return errors;
});
console.log(JSON.stringify(said));
