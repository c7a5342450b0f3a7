// A clock that is an hour off, by openid-client, which tries once more by itself when it gets
// a nonce, and by oauth4webapi, whose callers do, with the nonce that it has kept.
//
// Reads {issuer, agent, svid, url, skew_s} as JSON from standard input and prints what each
// sent and got as JSON.
import * as oauth from "oauth4webapi";
import * as openid from "openid-client";
import { EXCHANGE, TYPE, discovered, get, given, http, tell, used } from "./common.mjs";

const parameters = () =>
  new URLSearchParams({
    subject_token: given.svid,
    subject_token_type: `${TYPE}jwt`,
    authorization_details: get(given.url),
  });
const claims = (jwt) => JSON.parse(Buffer.from(jwt.split(".")[1], "base64url"));
// What goes to the token endpoint: how far from now each proof is, and whether by a nonce.
const watching = (log) => async (url, init) => {
  const answer = await fetch(url, init);
  const proof = new Headers(init?.headers).get("dpop");
  if (proof) {
    const { iat, nonce } = claims(proof);
    const off_s = Math.round(iat - Date.now() / 1000);
    log.push({ status: answer.status, off_s, nonce: nonce !== undefined });
  }
  return answer;
};

const byOpenid = async () => {
  const sent = [];
  const metadata = { [openid.clockSkew]: given.skew_s };
  const config = await openid.discovery(new URL(given.issuer), given.agent, metadata, openid.None(), {
    algorithm: "oauth2",
    execute: [openid.allowInsecureRequests],
  });
  config[openid.customFetch] = watching(sent);
  const DPoP = openid.getDPoPHandle(config, await openid.randomDPoPKeyPair("ES256"));
  const token = await openid.genericGrantRequest(config, EXCHANGE, parameters(), { DPoP });
  // The next one has the nonce from the start.
  await openid.genericGrantRequest(config, EXCHANGE, parameters(), { DPoP });
  return { sent, claims: claims(token.access_token), edge: await used(token.access_token, given.url, DPoP) };
};

const byOauth = async () => {
  const sent = [];
  const as = await discovered(given.issuer);
  const client = { client_id: given.agent, [oauth.clockSkew]: given.skew_s };
  const DPoP = oauth.DPoP(client, await oauth.generateKeyPair("ES256"));
  const ask = async () => {
    const answer = await oauth.genericTokenEndpointRequest(as, client, oauth.None(), EXCHANGE, parameters(), {
      DPoP,
      [oauth.customFetch]: watching(sent),
      ...http,
    });
    return oauth.processGenericTokenEndpointResponse(as, client, answer);
  };
  const token = await ask().catch((error) => {
    if (!oauth.isDPoPNonceError(error)) throw error;
    return ask();
  });
  return { sent, claims: claims(token.access_token), edge: await used(token.access_token, given.url, DPoP) };
};

tell({ openid: await byOpenid(), oauth: await byOauth() });
