// One action with a standard OAuth client that knows nothing of Writ:
// discovery, token exchange with DPoP, and the request, all by oauth4webapi.
//
// Reads {issuer, resource, agent, svid, url, alg} as JSON from standard input and
// prints what it saw as JSON.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import * as oauth from "oauth4webapi";
import { createRemoteJWKSet, jwtVerify } from "jose";

const given = JSON.parse(readFileSync(0, "utf8"));
const http = { [oauth.allowInsecureRequests]: true };

const issuer = new URL(given.issuer);
const discovered = await oauth.discoveryRequest(issuer, { algorithm: "oauth2", ...http });
const as = await oauth.processDiscoveryResponse(issuer, discovered);

const keys = await oauth.generateKeyPair(given.alg);
const client = { client_id: given.agent };
const DPoP = oauth.DPoP(client, keys);

const details = [{ type: "http_request", actions: ["GET"], locations: [given.url] }];
const parameters = new URLSearchParams({
  subject_token: given.svid,
  subject_token_type: "urn:ietf:params:oauth:token-type:jwt",
  resource: given.resource,
  authorization_details: JSON.stringify(details),
});
const exchanged = await oauth.genericTokenEndpointRequest(
  as,
  client,
  oauth.None(),
  "urn:ietf:params:oauth:grant-type:token-exchange",
  parameters,
  { DPoP, ...http },
);
const token = await oauth.processGenericTokenEndpointResponse(as, client, exchanged);
assert.equal(token.token_type, "dpop");
assert.equal(token.issued_token_type, "urn:ietf:params:oauth:token-type:access_token");
assert.deepEqual(token.authorization_details, details);

// Another implementation of JOSE reads the token by the published keys.
const jwks = createRemoteJWKSet(new URL(as.jwks_uri));
const { payload, protectedHeader } = await jwtVerify(token.access_token, jwks, {
  issuer: as.issuer,
  audience: given.resource,
  typ: "at+jwt",
  algorithms: ["ES256"],
});
assert.equal(payload.cnf.jkt, await DPoP.calculateThumbprint());

const use = () =>
  oauth.protectedResourceRequest(token.access_token, "GET", new URL(given.url), undefined, undefined, {
    DPoP,
    ...http,
  });
// Where the route asks for a nonce the library keeps it, and whoever calls it repeats.
let asked = 0;
const heal = (error) => {
  if (!oauth.isDPoPNonceError(error)) throw error;
  asked += 1;
  return use();
};
const first = await use().catch(heal);
const body = await first.text();

let second;
try {
  second = { status: (await use().catch(heal)).status, challenges: [] };
} catch (error) {
  if (!(error instanceof oauth.WWWAuthenticateChallengeError)) throw error;
  second = { status: error.status, challenges: error.cause, problem: await error.response.json() };
}

console.log(
  JSON.stringify({ expires_in: token.expires_in, header: protectedHeader, claims: payload, asked, first: { status: first.status, body }, second }),
);
