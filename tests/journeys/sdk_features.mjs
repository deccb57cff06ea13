// Tools and schemas through the official Node SDK's own helpers; prints one JSON object for the test to judge.
import OpenAI from "openai";

const [baseURL, apiKey, model, givenSchema] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const schema = JSON.parse(givenSchema);
const tools = [{ type: "function", function: { name: "weather", description: "Tells the weather.", parameters: schema } }];
const response_format = { type: "json_schema", json_schema: { name: "weather", strict: true, schema } };
const question = { model, temperature: 0, max_tokens: 200, messages: [{ role: "user", content: "Weather in Bern?" }] };
const required = { ...question, tools, tool_choice: "required", parallel_tool_calls: false };

const seen = {};

const called = await client.chat.completions.create(required);
seen.call = { finish: called.choices[0].finish_reason, message: called.choices[0].message };

const runner = client.chat.completions.stream({ ...required, stream_options: { include_usage: true } });
const pieces = [];
runner.on("tool_calls.function.arguments.delta", (event) => pieces.push(event.arguments_delta));
const streamed = await runner.finalChatCompletion();
seen.streamedCall = { finish: streamed.choices[0].finish_reason, message: streamed.choices[0].message, pieces, usage: streamed.usage };

const [call] = called.choices[0].message.tool_calls;
const result = { role: "tool", tool_call_id: call.id, content: "sunny" };
const turn = await client.chat.completions.create({ ...question, tools, messages: [...question.messages, called.choices[0].message, result] });
seen.turn = { finish: turn.choices[0].finish_reason, content: turn.choices[0].message.content };

const tool = { ...tools[0], function: { ...tools[0].function, function: () => "sunny", parse: JSON.parse } };
const loop = client.chat.completions.runTools({ ...question, tools: [tool] });
seen.loop = { content: await loop.finalContent(), roles: loop.messages.map((message) => message.role) };

const parsed = await client.chat.completions.parse({ ...question, response_format });
seen.parsed = { content: parsed.choices[0].message.content, refusal: parsed.choices[0].message.refusal };

const schemaStream = client.chat.completions.stream({ ...question, response_format });
let text = "";
schemaStream.on("content.delta", ({ delta }) => (text += delta));
seen.streamedSchema = { content: await schemaStream.finalContent(), text };

console.log(JSON.stringify(seen));
