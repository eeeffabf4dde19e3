// OpenAI's Node client against a gateway: what it sees, as JSON. Arguments: base URL, key, model.
import OpenAI from "openai";

const [baseURL, apiKey, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "What is 5 + 7?" }];
const options = { model, messages, temperature: 0, max_tokens: 12 };

const models = await client.models.list();
const whole = await client.chat.completions.create(options);
let text = "";
let usage = null;
let finish = null;
const stream = await client.chat.completions.create({
  ...options, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  finish = chunk.choices[0]?.finish_reason ?? finish;
  usage = chunk.usage ?? usage;
}
const helper = client.chat.completions.stream({ ...options });
const final = await helper.finalChatCompletion();
let refusal = null;
try {
  await client.chat.completions.create({ ...options, max_tokens: -1 });
} catch (error) {
  refusal = { status: error.status, code: error.code, param: error.param, name: error.constructor.name };
}
console.log(JSON.stringify({
  models: models.data.map((found) => found.id),
  whole: whole.choices[0].message.content,
  weir: whole.weir,
  requestId: whole._request_id,
  text, usage, finish,
  final: final.choices[0].message.content,
  refusal,
}));
