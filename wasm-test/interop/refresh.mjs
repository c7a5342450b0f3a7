// Refresh tokens by oauth4webapi and by openid-client, whose client authenticates by its key
// each time (private_key_jwt): it rotates twice, acts with the last one, and then somebody shows
// the first one again.
//
// Reads {issuer, client, key, url} as JSON from standard input and prints what each saw as JSON.
import assert from "node:assert/strict";
import * as oauth from "oauth4webapi";
import * as openid from "openid-client";
import { importJWK } from "jose";
import { discovered, get, given, http, refusal, tell, used } from "./common.mjs";

const key = { key: await importJWK(given.key, "ES256"), kid: given.key.kid };
const client = { client_id: given.client };
const details = { authorization_details: get(given.url) };
const as = await discovered(given.issuer);
assert.ok(as.grant_types_supported.includes("refresh_token"));

const byOauth = async () => {
  const auth = oauth.PrivateKeyJwt(key);
  const DPoP = oauth.DPoP(client, await oauth.generateKeyPair("ES256"));
  const first = async () => {
    const parameters = new URLSearchParams(details);
    const answer = await oauth.clientCredentialsGrantRequest(as, client, auth, parameters, { DPoP, ...http });
    return oauth.processClientCredentialsResponse(as, client, answer);
  };
  const next = async (token) => {
    const options = { DPoP, additionalParameters: details, ...http };
    const answer = await oauth.refreshTokenGrantRequest(as, client, auth, token, options);
    return oauth.processRefreshTokenResponse(as, client, answer);
  };
  return { DPoP, first, next };
};

const byOpenid = async () => {
  const config = await openid.discovery(new URL(given.issuer), given.client, undefined, openid.PrivateKeyJwt(key), {
    algorithm: "oauth2",
    execute: [openid.allowInsecureRequests],
  });
  const DPoP = openid.getDPoPHandle(config, await openid.randomDPoPKeyPair("ES256"));
  const first = () => openid.clientCredentialsGrant(config, details, { DPoP });
  const next = (token) => openid.refreshTokenGrant(config, token, details, { DPoP });
  return { DPoP, first, next };
};

const life = async ({ DPoP, first, next }) => {
  const tokens = [await first()];
  for (const _ of [1, 2]) tokens.push(await next(tokens.at(-1).refresh_token));
  assert.equal(new Set(tokens.map((it) => it.refresh_token)).size, 3, "each is another");
  for (const token of tokens) assert.equal(token.token_type, "dpop");
  const acted = await used(tokens[2].access_token, given.url, DPoP);
  return {
    acted,
    reuse: await refusal(next(tokens[0].refresh_token)),
    family: await refusal(next(tokens[2].refresh_token)),
    brought: await used(tokens[1].access_token, given.url, DPoP),
  };
};

tell({ oauth: await life(await byOauth()), openid: await life(await byOpenid()) });
