// MCP's own SDK on both sides of the proxy: its server behind it, and its client, whose
// `fetch` gets a token for each message that it sends and shows that with a proof. That is
// all that they know of Writ.
//
// Reads {issuer, resource, agent, svid, url, port} as JSON from standard input: `port` is where
// the server listens, `url` what the client calls. Prints what it saw as JSON.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import * as oauth from "oauth4webapi";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { serve } from "./sums.mjs";

const given = JSON.parse(readFileSync(0, "utf8"));
const http = { [oauth.allowInsecureRequests]: true };

const { called, stop } = await serve(given.port);

// The token endpoint.
const issuer = new URL(given.issuer);
const discovered = await oauth.discoveryRequest(issuer, { algorithm: "oauth2", ...http });
const as = await oauth.processDiscoveryResponse(issuer, discovered);
assert.ok(as.authorization_details_types_supported.includes("mcp_request"));
const client = { client_id: given.agent };
const DPoP = oauth.DPoP(client, await oauth.generateKeyPair("ES256"));
const token = async (element) => {
  const details = [element];
  const parameters = new URLSearchParams({
    subject_token: given.svid,
    subject_token_type: "urn:ietf:params:oauth:token-type:jwt",
    resource: given.resource,
    authorization_details: JSON.stringify(details),
  });
  const answer = await oauth.genericTokenEndpointRequest(
    as,
    client,
    oauth.None(),
    "urn:ietf:params:oauth:grant-type:token-exchange",
    parameters,
    { DPoP, ...http },
  );
  const token = await oauth.processGenericTokenEndpointResponse(as, client, answer);
  assert.deepEqual(token.authorization_details, details);
  return token.access_token;
};

const digest = (args) => {
  // These are of one level, and of numbers: sorted, they are in canonical form.
  const sorted = Object.fromEntries(Object.entries(args).sort());
  return createHash("sha256").update(JSON.stringify(sorted)).digest("base64url");
};
const elementOf = ({ method, params }) => {
  const element = { type: "mcp_request", actions: [method], locations: [given.url] };
  if (method === "tools/call") {
    element.name = params.name;
    element.arguments_digest = digest(params.arguments ?? {});
  }
  return element;
};

// What stands in for a message when its token is asked for, and the token for the next one.
let instead = (message) => message;
let kept;
const sent = [];
const guarded = async (url, init) => {
  const method = init?.method ?? "GET";
  const at = new URL(url).href;
  const message = method === "POST" ? JSON.parse(init.body) : undefined;
  const element = message
    ? elementOf(instead(message))
    : { type: "http_request", actions: [method], locations: [at] };
  const shown = kept ?? (await token(element));
  sent.push([element.type, element.actions[0], shown]);
  try {
    const headers = new Headers(init.headers);
    const answer = await oauth.protectedResourceRequest(shown, method, new URL(at), headers, init.body, {
      DPoP,
      ...http,
    });
    return answer;
  } catch (error) {
    if (!(error instanceof oauth.WWWAuthenticateChallengeError)) throw error;
    return error.response;
  }
};

const agent = new Client({ name: "agent", version: "1.0.0" });
await agent.connect(new StreamableHTTPClientTransport(new URL(given.url), { fetch: guarded }));
const { tools } = await agent.listTools();
const { content } = await agent.callTool({ name: "add", arguments: { b: 2, a: 1 } });

const refused = async (name, args) => {
  try {
    await agent.callTool({ name, arguments: args });
  } catch (error) {
    return String(error.message);
  }
  return "it passed";
};
const spent = sent.at(-1)[2];
const refusals = {};
// A token for one tool, and another is called; for some arguments, and others are sent.
instead = (message) => ({ ...message, params: { ...message.params, name: "add" } });
refusals.tool = await refused("subtract", { a: 1, b: 2 });
instead = (message) => ({ ...message, params: { ...message.params, arguments: { a: 1, b: 2 } } });
refusals.arguments = await refused("add", { a: 1, b: 3 });
// And one that was used.
kept = spent;
refusals.again = await refused("add", { a: 1, b: 2 });

await agent.close().catch(() => {});
stop();
console.log(
  JSON.stringify({
    tools: tools.map(({ name }) => name),
    sum: content[0].text,
    sent: sent.map(([type, method]) => [type, method]),
    called,
    refusals,
  }),
);
