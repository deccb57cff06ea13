// What a person with the official Node SDK does; prints one JSON object for the test to judge.
import OpenAI from "openai";

const [baseURL, apiKey, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const question = { model, messages: [{ role: "user", content: "Say exactly: naïve 東京 🙂" }] };

const streamed = { text: "", roles: [], finish: [] };
const stream = await client.chat.completions.create({
  ...question,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  streamed.id = chunk.id;
  if (chunk.usage) streamed.usage = chunk.usage;
  for (const choice of chunk.choices) {
    streamed.text += choice.delta.content ?? "";
    if (choice.delta.role) streamed.roles.push(choice.delta.role);
    if (choice.finish_reason) streamed.finish.push(choice.finish_reason);
  }
}

const whole = await client.chat.completions.create(question);

async function refusal(options, change) {
  try {
    await new OpenAI({ baseURL, apiKey, maxRetries: 0, ...options }).chat.completions.create({ ...question, ...change });
  } catch (error) {
    return { kind: error.constructor.name, status: error.status, code: error.code };
  }
}

const refused = {
  key: await refusal({ apiKey: "inf_wrong" }, {}),
  model: await refusal({}, { model: "no/such" }),
  value: await refusal({}, { temperature: 3 }),
};
const models = [];
for await (const one of client.models.list()) models.push(one.id);

console.log(JSON.stringify({ streamed, whole, refused, models }));
