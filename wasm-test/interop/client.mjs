// A traditional service: private_key_jwt and client_credentials, by oauth4webapi, and
// the request. It knows nothing of SPIFFE, nor of Writ but the one action that it names.
//
// Reads {issuer, client, key, svid, url} as JSON from standard input and prints what it
// saw as JSON. With `svid` it authenticates by that instead of its key.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import * as oauth from "oauth4webapi";
import { importJWK } from "jose";

const given = JSON.parse(readFileSync(0, "utf8"));
const http = { [oauth.allowInsecureRequests]: true };

const issuer = new URL(given.issuer);
const discovered = await oauth.discoveryRequest(issuer, { algorithm: "oauth2", ...http });
const as = await oauth.processDiscoveryResponse(issuer, discovered);
const client = { client_id: given.client };
const DPoP = oauth.DPoP(client, await oauth.generateKeyPair("ES256"));

// draft-ietf-oauth-spiffe-client-auth: an assertion of another type.
const svid = (_as, client, body) => {
  body.set("client_id", client.client_id);
  body.set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe");
  body.set("client_assertion", given.svid);
};
const key = async () =>
  oauth.PrivateKeyJwt({ key: await importJWK(given.key, "ES256"), kid: given.key.kid });
const method = given.svid ? "spiffe_jwt" : "private_key_jwt";
assert.ok(as.token_endpoint_auth_methods_supported.includes(method));

const details = [{ type: "http_request", actions: ["GET"], locations: [given.url] }];
const granted = await oauth.clientCredentialsGrantRequest(
  as,
  client,
  given.svid ? svid : await key(),
  new URLSearchParams({ authorization_details: JSON.stringify(details) }),
  { DPoP, ...http },
);
const token = await oauth.processClientCredentialsResponse(as, client, granted);
assert.equal(token.token_type, "dpop");
assert.equal(token.issued_token_type, undefined);
assert.deepEqual(token.authorization_details, details);

const answer = await oauth.protectedResourceRequest(
  token.access_token,
  "GET",
  new URL(given.url),
  undefined,
  undefined,
  { DPoP, ...http },
);
console.log(JSON.stringify({ status: answer.status, body: await answer.text() }));
