// Introspection and revocation by oauth4webapi and by openid-client: each fetches a token,
// asks about it, revokes it, and asks again.
//
// Reads {issuer, client, key, svid, url} as JSON from standard input and prints what each
// saw as JSON. With `svid` they authenticate by that instead of the client's key.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import * as oauth from "oauth4webapi";
import * as openid from "openid-client";
import { importJWK } from "jose";

const given = JSON.parse(readFileSync(0, "utf8"));
const http = { [oauth.allowInsecureRequests]: true };
const client = { client_id: given.client };

// draft-ietf-oauth-spiffe-client-auth: an assertion of another type.
const svid = (_as, client, body) => {
  body.set("client_id", client.client_id);
  body.set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe");
  body.set("client_assertion", given.svid);
};
const key = given.svid ? undefined : { key: await importJWK(given.key, "ES256"), kid: given.key.kid };
const method = given.svid ? "spiffe_jwt" : "private_key_jwt";

const issuer = new URL(given.issuer);
const discovered = await oauth.discoveryRequest(issuer, { algorithm: "oauth2", ...http });
const as = await oauth.processDiscoveryResponse(issuer, discovered);
for (const endpoint of ["introspection", "revocation"]) {
  assert.ok(as[`${endpoint}_endpoint_auth_methods_supported`].includes(method));
}

const details = [{ type: "http_request", actions: ["GET"], locations: [given.url] }];
const DPoP = oauth.DPoP(client, await oauth.generateKeyPair("ES256"));
const proven = () => (given.svid ? svid : oauth.PrivateKeyJwt(key));
const fetched = async () => {
  const parameters = new URLSearchParams({ authorization_details: JSON.stringify(details) });
  const granted = await oauth.clientCredentialsGrantRequest(as, client, proven(), parameters, {
    DPoP,
    ...http,
  });
  return (await oauth.processClientCredentialsResponse(as, client, granted)).access_token;
};

const byOauth = async () => {
  const token = await fetched();
  const asked = async () => {
    const answer = await oauth.introspectionRequest(as, client, proven(), token, http);
    return oauth.processIntrospectionResponse(as, client, answer);
  };
  const before = await asked();
  const revoked = await oauth.revocationRequest(as, client, proven(), token, http);
  await oauth.processRevocationResponse(revoked);
  return { token, before, after: await asked() };
};

const byOpenid = async () => {
  const token = await fetched();
  const auth = given.svid ? svid : openid.PrivateKeyJwt(key);
  const config = await openid.discovery(issuer, given.client, undefined, auth, {
    algorithm: "oauth2",
    execute: [openid.allowInsecureRequests],
  });
  const before = await openid.tokenIntrospection(config, token);
  await openid.tokenRevocation(config, token, { token_type_hint: "access_token" });
  return { token, before, after: await openid.tokenIntrospection(config, token) };
};

const jkt = await DPoP.calculateThumbprint();
const seen = { oauth: await byOauth(), openid: await byOpenid() };
for (const { before } of Object.values(seen)) {
  assert.equal(before.cnf.jkt, jkt);
  assert.deepEqual(before.authorization_details, details);
}
// The edge refuses both.
const answers = [];
for (const { token } of Object.values(seen)) {
  const url = new URL(given.url);
  try {
    const answer = await oauth.protectedResourceRequest(token, "GET", url, undefined, undefined, {
      DPoP,
      ...http,
    });
    answers.push({ status: answer.status });
  } catch (error) {
    if (!(error instanceof oauth.WWWAuthenticateChallengeError)) throw error;
    answers.push({ status: error.status, reason: (await error.response.json()).reason });
  }
}
console.log(JSON.stringify({ ...seen, answers }));
