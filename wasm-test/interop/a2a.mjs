// A2A's own SDK on both sides of the proxy: its server behind it, and its client, whose `fetch`
// gets a token for each message that it sends and shows that with a proof. That is all that
// they know of Writ.
//
// Reads {issuer, resource, agent, svid, url, port} as JSON from standard input: `port` is where
// the server listens, `url` what the client calls. Prints what it saw as JSON.
import { Role } from "@a2a-js/sdk";
import { ClientFactory, JsonRpcTransportFactory } from "@a2a-js/sdk/client";
import { AgentEvent, DefaultRequestHandler, InMemoryTaskStore } from "@a2a-js/sdk/server";
import { UserBuilder, jsonRpcHandler } from "@a2a-js/sdk/server/express";
import express from "express";
import * as oauth from "oauth4webapi";
import { EXCHANGE, TYPE, discovered, given, http, tell } from "./common.mjs";

// The server: it says what it was sent, and with which skill.
const card = {
  name: "words",
  description: "Says what it is told.",
  version: "1.0.0",
  provider: undefined,
  supportedInterfaces: [{ url: given.url, protocolBinding: "JSONRPC", protocolVersion: "1.0", tenant: "" }],
  capabilities: { streaming: true, pushNotifications: false, extensions: [] },
  securitySchemes: {},
  securityRequirements: [],
  defaultInputModes: ["text/plain"],
  defaultOutputModes: ["text/plain"],
  skills: ["translate", "shout"].map((id) => ({
    id,
    name: id,
    description: id,
    tags: [],
    examples: [],
    inputModes: [],
    outputModes: [],
    securityRequirements: [],
  })),
  signatures: [],
};
const message = (text, skill) => ({
  messageId: crypto.randomUUID(),
  contextId: "",
  taskId: "",
  role: Role.ROLE_USER,
  parts: [{ content: { $case: "text", value: text }, metadata: undefined, filename: "", mediaType: "text/plain" }],
  metadata: skill && { skillId: skill },
  extensions: [],
  referenceTaskIds: [],
});
const arrived = [];
const executor = {
  execute: async ({ userMessage, contextId }, bus) => {
    const text = userMessage.parts[0].content.value;
    arrived.push([text, userMessage.metadata?.skillId ?? null]);
    bus.publish(AgentEvent.message({ ...message(text.toUpperCase()), contextId, role: Role.ROLE_AGENT }));
    bus.finished();
  },
  cancelTask: async () => {},
};
const requestHandler = new DefaultRequestHandler(card, new InMemoryTaskStore(), executor);
const app = express();
app.use("/a2a", jsonRpcHandler({ requestHandler, userBuilder: UserBuilder.noAuthentication }));
const listening = await new Promise((resolve) => {
  const server = app.listen(given.port, "127.0.0.1", () => resolve(server));
});

// The token endpoint.
const as = await discovered(given.issuer);
const client = { client_id: given.agent };
const DPoP = oauth.DPoP(client, await oauth.generateKeyPair("ES256"));
const token = async (element) => {
  const parameters = new URLSearchParams({
    subject_token: given.svid,
    subject_token_type: `${TYPE}jwt`,
    resource: given.resource,
    authorization_details: JSON.stringify([element]),
  });
  const answer = await oauth.genericTokenEndpointRequest(as, client, oauth.None(), EXCHANGE, parameters, {
    DPoP,
    ...http,
  });
  return (await oauth.processGenericTokenEndpointResponse(as, client, answer)).access_token;
};

// The skill that a token is got for: the message's, or another.
let skillOf = (params) => params.message?.metadata?.skillId;
const sent = [];
const refused = [];
const guarded = async (url, init) => {
  const { method, params } = JSON.parse(init.body);
  const element = { type: "a2a_request", actions: [method], locations: [given.url] };
  const skill = skillOf(params);
  if (skill !== undefined) element.skill = skill;
  const headers = new Headers(init.headers);
  const shown = await token(element);
  sent.push({ method, members: Object.keys(params.message ?? params).sort(), version: headers.get("a2a-version") });
  try {
    const options = { DPoP, ...http };
    return await oauth.protectedResourceRequest(shown, "POST", new URL(url), headers, init.body, options);
  } catch (error) {
    if (!(error instanceof oauth.WWWAuthenticateChallengeError)) throw error;
    refused.push((await error.response.clone().json()).reason);
    return error.response;
  }
};

const factory = new ClientFactory({ transports: [new JsonRpcTransportFactory({ fetchImpl: guarded })] });
const agent = await factory.createFromAgentCard(card);
const send = async (text, skill) => {
  const request = { tenant: "", message: message(text, skill), configuration: undefined, metadata: undefined };
  const said = await agent.sendMessage(request);
  return said.parts[0].content.value;
};
const said = [await send("plain"), await send("hello", "translate")];
const stream = agent.sendMessageStream({
  tenant: "",
  message: message("stream", "shout"),
  configuration: undefined,
  metadata: undefined,
});
for await (const { payload } of stream) said.push(payload.value.parts[0].content.value);

// A token for one skill, and the message says another, or none; for none, and it says one.
const failing = async (of, ...words) => {
  skillOf = of;
  await send(...words).then(() => refused.push("it passed"), () => {});
};
await failing(() => "translate", "other", "shout");
await failing(() => "translate", "none");
await failing(() => undefined, "one", "translate");

listening.closeAllConnections();
listening.close();
tell({ said, arrived, sent, refused });
process.exit(0);
