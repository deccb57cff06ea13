// What the official Node SDK makes of each refusal: one question per code, whose content names the refusal it wants.
import OpenAI from "openai";

const [baseURL, apiKey, model, codes] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 1 });

async function refusal(code, stream) {
  const messages = [{ role: "user", content: `node-${stream ? "stream" : "whole"}:${code}` }];
  try {
    await client.chat.completions.create({ model, messages, stream });
  } catch (error) {
    return { kind: error.constructor.name, status: error.status, code: error.code, type: error.type, id: error.requestID };
  }
}

const seen = {};
await Promise.all(
  JSON.parse(codes).flatMap((code) => [
    refusal(code, false).then((told) => (seen[`whole:${code}`] = told)),
    refusal(code, true).then((told) => (seen[`stream:${code}`] = told)),
  ]),
);
console.log(JSON.stringify(seen));
