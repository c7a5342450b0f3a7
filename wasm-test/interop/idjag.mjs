// Enterprise-managed authorization by MCP's SDK (its cross-app access provider): the client is
// pointed at a server, is refused, finds the issuer (RFC 9728), brings an ID-JAG and its own
// key (private_key_jwt), gets a token bound to its DPoP key, and goes on with that; each
// message anew, since a token is good once. Of Writ it knows which action to ask for.
//
// Reads {issuer, client, key, idp, idp_key, user, url, port} as JSON from standard input:
// `port` is where the server listens, `url` what the client calls. Prints what it saw as JSON.
import {
  Client,
  CrossAppAccessProvider,
  DpopSession,
  StreamableHTTPClientTransport,
  createPrivateKeyJwtAuth,
} from "@modelcontextprotocol/client";
import { SignJWT, importJWK } from "jose";
import { given, tell } from "./common.mjs";
import { serve } from "./sums.mjs";

const { called, stop } = await serve(given.port);

// The enterprise's identity provider: a grant for this client and this server.
const idp = await importJWK(given.idp_key, "ES256");
const asked = [];
const assertion = async ({ authorizationServerUrl, resourceUrl }) => {
  asked.push([String(authorizationServerUrl), String(resourceUrl)]);
  return new SignJWT({ client_id: given.client, resource: String(resourceUrl) })
    .setProtectedHeader({ alg: "ES256", kid: given.idp_key.kid, typ: "oauth-id-jag+jwt" })
    .setIssuer(given.idp)
    .setSubject(given.user)
    .setAudience(String(authorizationServerUrl))
    .setJti(crypto.randomUUID())
    .setIssuedAt()
    .setExpirationTime("5m")
    .sign(idp);
};

const session = await DpopSession.create();
let method;
class Provider extends CrossAppAccessProvider {
  addClientAuthentication = createPrivateKeyJwtAuth({
    issuer: given.client,
    subject: given.client,
    privateKey: given.key,
    alg: "ES256",
  });
  dpop() {
    return session;
  }
  async prepareTokenRequest(scope) {
    const parameters = await super.prepareTokenRequest(scope);
    const details = [{ type: "http_request", actions: [method], locations: [given.url] }];
    parameters.set("authorization_details", JSON.stringify(details));
    return parameters;
  }
}

// What goes to the server, and what comes back. It has no stream to listen to, and says so
// here already: its token would be another than that of the message that goes out meanwhile.
const seen = [];
const watched = async (url, init) => {
  const sent = init?.method ?? "GET";
  const own = new URL(url).href === given.url;
  if (own && sent === "GET") return new Response(null, { status: 405 });
  if (own) method = sent;
  const answer = await fetch(url, init);
  if (own) seen.push([sent, answer.status, answer.ok ? null : (await answer.clone().json()).reason]);
  return answer;
};

const authProvider = new Provider({ clientId: given.client, assertion, expectedIssuer: given.issuer });
const client = new Client({ name: "agent", version: "1.0.0" });
const transport = new StreamableHTTPClientTransport(new URL(given.url), { authProvider, fetch: watched });
const complaints = [];
client.onerror = (error) => complaints.push(String(error));
await client.connect(transport);
const { content } = await client.callTool({ name: "add", arguments: { a: 1, b: 2 } });
await client.close().catch(() => {});
stop();
tell({ sum: content[0].text, called, asked, seen, complaints });
process.exit(0);
